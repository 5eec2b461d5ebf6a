"""Leaderboards: a dataset and methods in, one JSON result a row, every table made from those, two results compared.

The arithmetic is in `metrics`.
"""
