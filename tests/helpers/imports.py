"""Who imports whom, read from the source: also imports inside functions, which no import at a module's top shows."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def modules(root: Path, packages: Sequence[str]) -> dict[str, Path]:
    """The files of every module of some packages, or of single modules, by the module's full name."""
    files = [root / f"{name}.py" for name in packages if (root / f"{name}.py").is_file()]
    files += [path for name in packages for path in sorted((root / name).rglob("*.py"))]
    names = (".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files)
    return dict(zip(names, files, strict=True))


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of a module, but for those under `if TYPE_CHECKING:`, which only a type checker runs."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def imported(source: str, names: Sequence[str] | Mapping[str, object]) -> set[str]:
    """Which of the modules `names` a module imports at run time, wherever in it the import stands.

    `from package import name` imports the module `package.name` if there is one of that name, and else `package`.
    """
    found = set()
    for node in run_time_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in names else node.module for full in whole.values()}
    return {name for name in found if name in names}


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one import cycle, in the order in which they import each other; empty when there is none."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        waiting = [iter((start,))]
        while waiting:  # depth first, `path` being the way from `start`
            name = next(waiting[-1], None)
            if name is None:
                waiting.pop()
                if path:
                    done.add(path.pop())
            elif name in path:
                return path[path.index(name) :]
            elif name not in done:
                path.append(name)
                waiting.append(iter(sorted(graph[name])))
    return []
