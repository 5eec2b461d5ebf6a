"""Refiners: what learns from marks, behind one protocol, and the registry that knows them by name.

What an index is asked with what they learnt is the affair of `answer`.
"""
