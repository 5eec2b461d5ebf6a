"""Reading the source of FOR to check the rules of the house."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

# Names that mean the same wherever they stand, each time for its own module.
SHARED_NAMES = frozenset(
    {
        "FORMAT",  # of a module's own files, which they begin with
        "INSTALL",  # the command that installs what a module needs
        "MANIFEST",  # the JSON file of a folder that says what else is in it
        "VERSION",  # raised when a module's results change
        "log",  # of a module
        "main",  # of a program
        "run_tables",  # the command, and what it runs
    }
)


def duplicate_names(files: Iterable[Path], shared: frozenset[str] = SHARED_NAMES) -> dict[str, list[str]]:
    """Public functions, classes and constants that several modules define at their top level under one name.

    files: Python sources.
    shared: names that may be repeated.

    Returns the files of each such name.
    """
    defined: defaultdict[str, list[str]] = defaultdict(list)
    for path in files:
        for name in dict.fromkeys(_top_level_names(ast.parse(path.read_text(encoding="utf-8")))):
            if not name.startswith("_") and name not in shared:
                defined[name].append(str(path))
    return {name: places for name, places in sorted(defined.items()) if len(places) > 1}


def _top_level_names(module: ast.Module) -> list[str]:
    names = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return names
