"""What a store knows of an image, as a row of its table of images and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import MappingProxyType

from for_model.data.dataset import ImageRecord
from for_search.store.changes import Stamp
from for_search.store.image_table import Cell, ColumnType, ImageRow
from for_search.store.metadata import LABEL_COLUMN

# What tells a changed file, and isn't shown: the exact time of its last change, and whether `taken` is its header's.
HIDDEN_COLUMNS: Mapping[str, ColumnType] = MappingProxyType({"_mtime_ns": "INTEGER", "_dated": "INTEGER"})
_FACTS = ("width", "height", "camera", "latitude", "longitude")


@dataclass(frozen=True)
class StoredImage:
    """An image of a store.

    stamp: its file as it was embedded or skipped; None for an image that isn't a file.
    cells: what is said of it beside that, by column, see `Metadata`.
    reason: why it was skipped; None for an image with embeddings.
    """

    record: ImageRecord
    stamp: Stamp | None = None
    cells: Mapping[str, Cell] = field(default_factory=dict)
    reason: str | None = None


def row_of(image: StoredImage) -> ImageRow:
    """The row of an image with embeddings."""
    cells: dict[str, Cell] = {}
    if image.stamp is not None:
        stamp = image.stamp
        cells = {"_mtime_ns": stamp.mtime_ns, "content": stamp.sha256 or None}
        if stamp.n_bytes:
            mtime = f"{datetime.fromtimestamp(stamp.mtime_ns // 10**9, timezone.utc):%Y-%m-%d %H:%M:%S}"
            cells.update({"size": stamp.n_bytes, "mtime": mtime, "taken": mtime})
        cells.update(stamp.facts)
        cells["_dated"] = 1 if "taken" in stamp.facts else None
    return ImageRow(image.record, {**cells, **image.cells})


def image_of(row: ImageRow, own: Mapping[str, ColumnType]) -> StoredImage:
    """The image that a row was made of. own: the user's columns."""
    found = row.cells
    cells = {name: value for name in (*own, LABEL_COLUMN) if (value := found.get(name)) is not None}
    mtime_ns = found["_mtime_ns"]
    if mtime_ns is None:
        return StoredImage(row.record, None, cells)
    told = (*_FACTS, "taken") if found["_dated"] else _FACTS
    facts = {name: value for name in told if (value := found[name]) is not None}
    stamp = Stamp(int(found["size"] or 0), int(mtime_ns), str(found["content"] or ""), facts)
    return StoredImage(row.record, stamp, cells)
