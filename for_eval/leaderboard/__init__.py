"""Leaderboards: a dataset and methods in, one JSON result a row, and every table made from those alone.

The arithmetic is in `metrics`.
"""
