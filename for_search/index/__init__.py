"""Search indexes: their files, the engines that find rows, and the exact ranking of distinct images.

An index knows vectors only; texts and images are encoded in `query`.
"""
