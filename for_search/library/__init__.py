"""The library: named indexes, opened or made on first use, builds in the background, and labels for images of an index.

It has no web framework; the page is in `for_app`.
"""
