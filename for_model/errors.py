"""What can go wrong, as a user sees it.

    ForError             caught by every command line: one line on stderr, exit code 2
    +-- UsageError       an argument that makes no sense
    +-- DataError        a dataset, annotation file or folder that is missing or damaged
    |   +-- ImageError   one image that can't be decoded (counted and listed, never fatal to a run)
    +-- WeightsError     weights that can't be fetched, read or fitted to the model
    +-- StoreError       an embedding store or index that is missing, damaged or of another model

A message says what was got, what was expected and what to do.
"""


class ForError(Exception):
    """Base of every error that FOR raises on purpose."""


class UsageError(ForError):
    """An argument that makes no sense."""


class DataError(ForError):
    """A dataset, annotation file or image folder that is missing or damaged."""


class ImageError(DataError):
    """One image that can't be decoded; its text is the reason that a manifest records."""


class WeightsError(ForError):
    """Model weights that can't be fetched, read, or fitted to the model."""


class StoreError(ForError):
    """An embedding store or search index that is missing, damaged, or of another model."""
