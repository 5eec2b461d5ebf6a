"""Sketches: 32 numbers of 8 bits for each embedding of an index, from which the whole answer to marks is found.

What makes them, how it is trained, where they lie, and the scan of boxes over them. What is asked of them is decided in
`for_search.refine`.
"""
