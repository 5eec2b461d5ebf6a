"""Refining by marks, measured: a user who is simulated with a dataset's labels, and the table of what marks are worth.

How methods do without marks is the affair of `leaderboard`.
"""
