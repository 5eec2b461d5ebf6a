"""Functions by name, imported when they are first called, so that a registry that names them imports nothing heavy."""

from importlib import import_module
from typing import Any


def imported(what: Any) -> Any:
    """The function or class that `"package.module:name"` names.

    what: such a text, or anything else, which is returned as it is.

    Raises ImportError or AttributeError when there is no such module or name: the registry's entry is wrong then.
    """
    if not isinstance(what, str):
        return what
    module, _, name = what.partition(":")
    return getattr(import_module(module), name)
