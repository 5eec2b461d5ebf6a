"""Functions by name, imported when they are first called, so that a registry that names them imports nothing heavy."""

from importlib import import_module
from typing import Any


def imported(what: Any) -> Any:
    """What `"package.module:name"` stands for; anything that isn't such a text is returned as it is.

    Raises ImportError or AttributeError when there is none, which is an error of the registry's entry.
    """
    if not isinstance(what, str):
        return what
    module, _, name = what.partition(":")
    return getattr(import_module(module), name)
