"""The page's tabs, a module each: components, and what their events do.

What they show is drawn in `views`; what they ask for is in `for_search` and `for_eval`.
"""
