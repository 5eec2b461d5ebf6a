"""Methods: how images and texts become embeddings that can be compared, and the registry that knows them by name.

The parts that most of them are made of are in `backbones` and `heads`.
"""
