"""What the tests of a served page know about it."""

from dataclasses import dataclass
from pathlib import Path

from for_eval.library import Library


@dataclass(frozen=True)
class Served:
    """A page at `url` over `library`, whose indexes and scenes lie in `folder`."""

    url: str
    library: Library
    folder: Path
