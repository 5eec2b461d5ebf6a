"""The compact engine: short codes in memory that choose rows, whose exact scores come from the rows on disk.

The exact scan is `flat_engine`'s, and what both engines promise is in `engine_protocol`.
"""
