"""Studies of what is asked beyond one name: is it there at all, and several things at once; fitted, chosen, measured.

How a query is answered is the affair of `for_search.query`; what a single name finds is the leaderboard's.
"""
