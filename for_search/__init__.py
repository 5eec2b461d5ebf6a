"""Embeddings to answers: stores, indexes, queries, and the library of indexes that a page or a program asks.

How embeddings are made is in `for_model`; how good the answers are is measured in `for_eval`.
"""
