"""Metrics: arrays in, numbers out, resamples of them, and the rankings that are kept beside a result.

The order of images that they score is made in `for_search.query.ranking`; comparing two results is in `leaderboard`.
"""
