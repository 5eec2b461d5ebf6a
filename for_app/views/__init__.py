"""Views: HTML, pictures and charts made of what was found. A view draws; it never runs a search.

The events that ask for it are in `tabs`.
"""
