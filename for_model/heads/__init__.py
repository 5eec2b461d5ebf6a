"""Heads: a feature map in, the embeddings of an image out; each equation of the paper stands here once.

How heads are trained is in `training`, and which of them are methods in `methods`.
"""
