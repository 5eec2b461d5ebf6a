"""What the manifest of an index says: which files it lists, whose rows they hold, and all their hashes.

INDEX/manifest.json     what is in the index, which rows are whose, all hashes
      segment-000001/   an engine's files over some of the store's shards; never changed once they are written
      images-000001.sqlite   the table of images, see `for_search.store.image_table`; never changed either
      lock              held by whoever writes
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model import files
from for_model.errors import StoreError
from for_model.methods.protocol import MethodInfo
from for_search.index.checked_file import BUILD_AGAIN, FileHashes, damaged
from for_search.index.engine_protocol import Engine
from for_search.store.shards import Shard
from for_search.store.store import FORMAT as STORE_FORMAT
from for_search.store.store import SkippedImage

FORMAT = "for-index/4"
MANIFEST = "manifest.json"
SEGMENT_NAME = re.compile(r"segment-(\d+)")
TABLE_NAME = re.compile(r"images-(\d+)\.sqlite")


@dataclass(frozen=True)
class SegmentNote:
    """A segment as the manifest lists it.

    folder: its name within the index.
    kind: of its engine.
    shards: those of the store whose rows it holds, all of each.
    files: of the engine.
    """

    folder: str
    kind: str
    shards: tuple[Shard, ...]
    files: dict[str, FileHashes]

    @property
    def n_images(self) -> int:
        return sum(shard.n_images for shard in self.shards)

    def is_of(self, engine: type[Engine]) -> bool:
        """Whether its files are those that an engine writes, and not another version of it."""
        return set(self.files) == set(engine.file_names)

    @classmethod
    def from_json(cls, note: dict[str, Any]) -> "SegmentNote":
        shards = tuple(Shard(**shard) for shard in note["shards"])
        return cls(note["folder"], note["kind"], shards, {n: FileHashes(**file) for n, file in note["files"].items()})


@dataclass(frozen=True)
class IndexManifest:
    """What an index's manifest says.

    store: the hash of the store's manifest that it was made from.
    table: the table of images, its file's name and hashes.
    places: [M] int64, the place of each image among those of all segments.
    """

    store: str
    kind: str
    info: MethodInfo
    dataset: str
    split: str
    image_root: str
    segments: tuple[SegmentNote, ...]
    table: tuple[str, FileHashes]
    n_images: int
    skipped: tuple[SkippedImage, ...]
    places: NDArray[np.int64]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "IndexManifest":
        """Raises KeyError, TypeError, ValueError or AttributeError for fields that aren't those of the format."""
        n_images, places = int(value["n_images"]), value["places"]
        made = cls(
            str(value["store"]),
            str(value["kind"]),
            MethodInfo(**value["method"]),
            str(value["dataset"]),
            str(value["split"]),
            str(value["image_root"]),
            tuple(SegmentNote.from_json(segment) for segment in value["segments"]),
            (str(value["table"]["file"]), FileHashes(**value["table"]["hashes"])),
            n_images,
            tuple(SkippedImage(**image) for image in value["skipped"]),
            np.arange(n_images) if places is None else np.array(places, np.int64),
        )
        total = sum(segment.n_images for segment in made.segments)
        if n_images < 1 or len(made.places) != n_images or min(made.info.n_embeddings, made.info.dim) < 1:
            raise ValueError("they contradict each other")
        if np.bincount(made.places, minlength=total).max() > 1 or len(np.bincount(made.places)) > total:
            raise ValueError("its images have no rows of their own")
        if not all(SEGMENT_NAME.fullmatch(segment.folder) for segment in made.segments) or not TABLE_NAME.fullmatch(
            made.table[0]
        ):
            raise ValueError("it leads out of the index")  # as one from elsewhere must not
        return made

    def to_json(self) -> dict[str, Any]:
        places = self.places.tolist()
        return files.sealed(
            {
                "format": FORMAT,
                "store": self.store,
                "kind": self.kind,
                "method": self.info.to_json(),
                "dataset": self.dataset,
                "split": self.split,
                "image_root": self.image_root,
                "segments": [asdict(segment) for segment in self.segments],
                "places": None if places == list(range(len(places))) else places,
                "table": {"file": self.table[0], "hashes": asdict(self.table[1])},
                "n_images": self.n_images,
                "skipped": [asdict(image) for image in self.skipped],
            }
        )


def index_manifest_of(path: Path, value: dict[str, Any]) -> IndexManifest:
    try:
        return IndexManifest.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path / MANIFEST, f"not the fields of {FORMAT}: {type(error).__name__} {error}") from error


def read_index_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index as JSON, its format and its own hash checked. Raises StoreError, in one line."""
    another = {STORE_FORMAT: f"{path} is an embedding store, not a search index: build an index from it"}
    try:
        return files.read_own_json(path / MANIFEST, FORMAT, BUILD_AGAIN, StoreError, others=another)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "has no manifest.json" if path.is_dir() else "is not a folder" if path.exists() else "doesn't exist"
        raise StoreError(f"no search index at {path}: it {what}; build one from an embedding store") from error
