"""Training of heads and of RN-mini: feature maps that are kept, targets, losses, and the loop.

What is trained is in `heads`; how it scores is the affair of `for_eval`.
"""
