"""Metrics: arrays in, numbers out, and comparisons of two results on the same resamples.

The order of images that they score is made in `for_search.query.ranking`.
"""
