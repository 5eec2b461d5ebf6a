"""Readers of datasets, each returning a `Dataset`, and the decoding of images.

Downloading datasets is the affair of `for_eval.download`.
"""
