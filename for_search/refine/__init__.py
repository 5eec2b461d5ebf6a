"""Refining by showing: marks on results, the models that learn from them, answers of the whole catalogue, concepts.

Texts are encoded in `query`, and which concepts a page offers is the affair of `library`.
"""
