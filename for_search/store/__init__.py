"""Embedding stores: the embeddings of a dataset on disk, and the command that fills them.

A store can't be searched; an index is made from it.
"""
