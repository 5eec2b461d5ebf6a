"""Public datasets: where they are published, fetching them, and checking what is there.

Reading them is the affair of `for_model.data`.
"""
