"""open_clip, imported without those parts of other libraries that FOR never runs of it.

Of the time that a plain `import open_clip` takes, `import torch` is about a third. What makes the difference is torch's
compiler, which torchvision imports to ask one question once RoI align runs, and the models of timm and transformers,
which open_clip offers as towers of its own and does without where they aren't installed. A search from the command
line waits for that import, so whatever needs open_clip takes it from here.
"""

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"
_LOCK = threading.Lock()  # two threads at once would take each other's stand-ins for the real modules, and leave them


class _AskedLater(ModuleType):
    """Stands for the compiler's module while torchvision is imported: its one function imports the real one."""

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        return importlib.import_module(_COMPILER).is_compile_supported(device_type)


@contextlib.contextmanager
def _standing_in(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Let `import` find other modules under some names meanwhile; where there is None, it finds that none is there."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)  # type: ignore[arg-type]  # None is how Python itself says it
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def import_open_clip() -> Any:
    """The module `open_clip`.

    Unless something else imported it before, it then can't build models with towers of timm's or of transformers' in
    this process. FOR takes none of these apart, see `model_weights.model_kind`.
    """
    with _LOCK:
        if "open_clip" not in sys.modules:
            with _standing_in({} if _COMPILER in sys.modules else {_COMPILER: _AskedLater(_COMPILER)}):
                import torchvision  # noqa: F401
            with _standing_in({"timm": None, "transformers": None}):
                import open_clip
    import open_clip

    return open_clip
