"""Backbones: a frozen trunk, its attention pool and a text encoder, and the loading of their weights.

What is trained on top of them is in `heads`; nothing here knows a head.
"""
