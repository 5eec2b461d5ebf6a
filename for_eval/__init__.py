"""Rankings to scores: metrics, leaderboards, the paper's tables, and the public datasets they need.

Nothing here draws for the page, and nothing that searching needs is here.
"""
