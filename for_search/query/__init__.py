"""Queries: a text or an image in, ranked images out, the evidence for a match, and methods side by side.

Which indexes there are is the affair of `library`.
"""
