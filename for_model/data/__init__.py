"""Readers: one module a dataset, each returning a `Dataset`."""
