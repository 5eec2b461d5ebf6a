"""The indexes that the page knows: opened on first use, once, whichever of several visitors asks first."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.data.dataset import Dataset
from for_model.data.registry import DATASETS, load_dataset
from for_model.errors import DataError, StoreError, UsageError
from for_model.files import cache_dir, sha256_json
from for_model.methods.protocol import LazyMethod, Method, MethodInfo
from for_model.methods.registry import DEFAULT_BACKBONE, built_in_methods, method_title
from for_search.index.index import SearchIndex
from for_search.index.index_files import open_index
from for_search.library.built_in_index import DEFAULT_DATASET, default_index
from for_search.library.folder_index import remembered
from for_search.library.packaged_methods import packaged_method
from for_search.query.searcher import Searcher, searcher_of
from for_search.refine.catalogue_sample import CatalogueSample, sample_catalogue

if TYPE_CHECKING:
    from for_model.backbones.protocol import ImageTextBackbone

_log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """An index of the library.

    images: equal for indexes of the same images; found, by looking at all of them, when it is asked for.
    source: equal for indexes of one folder by one method, the later of which takes the place of the earlier.
    open: what opens it, on first use.
    """

    images: Callable[[], str]
    source: str
    open: Callable[[], Searcher]
    searcher: Searcher | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Library:
    """Named indexes, in the order in which they were added. Several threads may share a library, and add to it.

    weights: the weights' file of the indexes that are added, see `searcher_of`.
    image_root: where their images lie now, see `searcher_of`.
    heads: files of trained heads, one of which may be an index's.
    concepts: the folder of kept concepts; None where none are kept.
    Raises WeightsError for a file among `heads` that is none.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        image_root: Path | None = None,
        heads: Iterable[Path] = (),
        concepts: Path | None = None,
    ) -> None:
        self.concepts = concepts
        self._weights, self._image_root, self._heads = weights, image_root, tuple(heads)
        if self._heads:
            from for_model.methods.head_files import read_head_file

            for head in self._heads:
                read_head_file(head)
        self._entries: dict[str, _Entry] = {}
        self._backbones: dict[tuple[str, str, int], ImageTextBackbone] = {}
        self._labels: dict[str, Dataset | None] = {}
        self._samples: dict[str, CatalogueSample] = {}
        self._lock = threading.RLock()  # of the dictionaries; never held while something is loaded
        self._loading = threading.Lock()  # so that the built-in indexes, asked for at once, load one backbone

    @classmethod
    def built_in(cls, weights: str | None = None, texts: Sequence[str] = ()) -> "Library":
        """MiniScenes' validation split by FOR, CLIP, Dense-CLIP and Cluster-CLIP, each made on its first use.

        Once made, they open in a moment: the network isn't loaded before something has to be encoded.

        weights: a file of RN-mini's weights; None for the packaged ones.
        texts: queries that can be searched for before the network is loaded; their embeddings are kept on disk.
        """
        library = cls(weights=weights)
        for method, n_embeddings in built_in_methods().items():
            title = f"{DEFAULT_DATASET} val: {method_title(method, n_embeddings)}"
            library._insert_entry(
                title, _Entry(lambda: DEFAULT_DATASET, method, partial(library._open_built_in, method, texts))
            )
        return library

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all indexes; each is there once."""
        with self._lock:
            return tuple(self._entries)

    @property
    def default(self) -> str:
        """The index that the page opens with. Raises UsageError for an empty library."""
        if not self.names:
            raise UsageError("no index is loaded: give one with --index")
        return self.names[0]

    def add(self, path: Path, *, built: bool = False) -> str:
        """Add the index at `path` and return its name.

        An index of the same folder by the same method that is there already gives its place and name to the new one.
        Only the manifest is read now. Raises StoreError when it is missing or damaged.

        built: it was built by the page, of images and weights that are where they were; the library's `weights` and
            `image_root` are those of other indexes.
        """
        index = open_index(path)
        return self._insert(index, partial(self._open, index, built))

    def add_opened(self, searcher: Searcher) -> str:
        """Add an index that is open already, and return its name."""
        name = self._insert(searcher.index, partial(self._open, searcher.index, False), searcher)
        self._keep_backbone(searcher.method)
        return name

    def add_remembered(self) -> None:
        """Add what was built on the page before and is still there; of what is damaged the log tells."""
        for path in remembered():
            self._add_unless_known(path)

    def reopen(self, name: str) -> None:
        """Open an index again whose folder has changed; who searches meanwhile has the old or the new one.

        Its method stays as it is. Raises UsageError for a name that isn't in the library, StoreError when the index is
        missing or damaged; the one of before is then kept.
        """
        searcher = self.searcher(name)
        self.add_opened(replace(searcher, index=open_index(searcher.index.path)))

    def searcher(self, name: str) -> Searcher:
        """The searcher of an index; opened, or for a built-in one made, by whoever asks first, and others wait.

        Raises UsageError for a name that isn't in the library, and what opening raises; then the next call tries again.
        """
        entry = self._entry(name)
        with entry.lock:
            if entry.searcher is None:
                entry.searcher = entry.open()
            return entry.searcher

    def siblings(self, name: str) -> tuple[str, ...]:
        """The other indexes of the same images, to compare with. Opens none. Raises UsageError for an unknown name."""
        images = self._entry(name).images()
        with self._lock:
            others = [(other, entry) for other, entry in self._entries.items() if other != name]
        return tuple(other for other, entry in others if entry.images() == images)

    def labels(self, name: str) -> Dataset | None:
        """The labelled dataset that an index was made of, if its annotations are still on disk and hold its images.

        Raises as `searcher` does.
        """
        searcher = self.searcher(name)
        with self._lock:
            if name in self._labels:
                return self._labels[name]
        dataset = _labelled(searcher)  # may take seconds, so others aren't kept waiting
        with self._lock:
            return self._labels.setdefault(name, dataset)

    def sample(self, name: str) -> CatalogueSample:
        """The random sample of an index that marks are learnt with, drawn once. Raises as `searcher` does."""
        searcher = self.searcher(name)
        with self._lock:
            if name in self._samples:
                return self._samples[name]
        sample = sample_catalogue(searcher.index)
        with self._lock:
            return self._samples.setdefault(name, sample)

    def backbone(self, name: str) -> "ImageTextBackbone | None":
        """A backbone of that name which an open index uses; None when there is none."""
        with self._lock:
            return next((each for each in self._backbones.values() if each.name == name), None)

    def private_paths(self) -> list[str]:
        """Paths of this machine that messages may hold and visitors need not see; for `without_paths`."""
        with self._lock:
            opened = [entry.searcher for entry in self._entries.values() if entry.searcher is not None]
        places = {Path.home(), Path.cwd(), cache_dir(), Path(__file__).parents[2]}
        if self.concepts is not None:
            places.add(self.concepts.absolute())
        places.update(place for searcher in opened for place in (searcher.image_root, searcher.index.path.absolute()))
        return [str(place) for place in places if place != Path("/")]

    def _entry(self, name: str) -> _Entry:
        with self._lock:
            if name in self._entries:
                return self._entries[name]
        raise UsageError(f"no index is called {name!r}: choose one of {', '.join(self.names)}")

    def _add_unless_known(self, path: Path) -> None:
        try:
            index = open_index(path)
        except StoreError as error:
            _log.warning("%s", error)
            return
        with self._lock:
            known = any(entry.source == _source(index) for entry in self._entries.values())
        if not known:
            self._insert(index, partial(self._open, index, True))

    def _insert(self, index: SearchIndex, open_it: Callable[[], Searcher], searcher: Searcher | None = None) -> str:
        place = Path(index.image_root).name if index.dataset == "folder" else f"{index.dataset} {index.split}"
        name = f"{place}: {method_title(index.info.method, index.info.n_embeddings)}"
        return self._insert_entry(name, _Entry(cache(partial(_images, index)), _source(index), open_it, searcher))

    def _insert_entry(self, name: str, entry: _Entry) -> str:
        with self._lock:
            wanted, number = name, 2
            for known, other in self._entries.items():
                if other.source == entry.source:
                    self._labels.pop(known, None)
                    self._samples.pop(known, None)
                    self._entries[known] = entry
                    return known
            while name in self._entries:
                name, number = f"{wanted} ({number})", number + 1
            self._entries[name] = entry
        return name

    def _open(self, index: SearchIndex, built: bool) -> Searcher:
        searcher = searcher_of(
            index,
            weights=None if built else self._weights,
            image_root=None if built else self._image_root,
            heads=self._heads,
            loaded=self._backbone(index.info),
        )
        self._keep_backbone(searcher.method)
        return searcher

    def _open_built_in(self, spec: str, texts: Sequence[str]) -> Searcher:
        load = partial(self._load_built_in, spec)
        if self._weights is None:
            method, embeddings = packaged_method(spec, texts, load)
        else:
            method, embeddings = LazyMethod.of(load()), {}
        return searcher_of(open_index(default_index(method)), method=method, texts=embeddings)

    def _load_built_in(self, spec: str) -> Method:
        from for_model.methods.build import build_method

        with self._loading:
            method = build_method(spec, DEFAULT_BACKBONE, self._weights, loaded=self.backbone(DEFAULT_BACKBONE))
            self._keep_backbone(method)
        return method

    def _backbone(self, info: MethodInfo) -> "ImageTextBackbone | None":
        """The backbone of an index, if an open one has the same."""
        with self._lock:
            return self._backbones.get((info.backbone, info.weights_sha256, info.image_size))

    def _keep_backbone(self, method: Method) -> None:
        from for_model.methods.clip_method import ClipMethod

        if isinstance(method, ClipMethod):
            with self._lock:
                info = method.info
                self._backbones.setdefault((info.backbone, info.weights_sha256, info.image_size), method.backbone)


def _images(index: SearchIndex) -> str:
    """Equal for indexes of the same images, whether these were embedded or skipped."""
    ids = sorted(str(image.id) for images in (index.images, index.skipped) for image in images)
    return sha256_json([index.dataset, index.split, index.image_root, ids])


def _source(index: SearchIndex) -> str:
    """Equal for indexes of one folder by one method."""
    return sha256_json([index.image_root, index.split, index.info.to_json()])


def _labelled(searcher: Searcher) -> Dataset | None:
    """The dataset of an index, read again where its images lie; None when it isn't there, or has no labels."""
    index = searcher.index
    if index.dataset not in DATASETS or not DATASETS[index.dataset].labelled:
        return None
    for root in (searcher.image_root.parent, searcher.image_root):
        try:
            dataset = load_dataset(index.dataset, root, index.split)
        except (DataError, UsageError) as error:
            _log.debug("no labels of %s at %s: %s", index.path, root, error)
            continue
        known = {image.id for image in dataset.images}
        if dataset.labels and all(image.id in known for image in index.images):
            return dataset
    return None
