"""Something of one's own: a module that FOR doesn't know defines a backbone, two methods, a dataset, an engine and a
table, and an entry each takes them all the way from an image to the page.
"""

import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from for_app.views.leaderboard import read_boards
from for_eval.__main__ import main as evaluate
from for_eval.leaderboard import paper_tables
from for_model.backbones.registry import BACKBONES, BackboneEntry, load_backbone
from for_model.data.registry import DATASETS, DatasetEntry, datasets_help, load_dataset
from for_model.errors import UsageError
from for_model.methods.build import build_method
from for_model.methods.head_config import HeadConfig
from for_model.methods.head_files import make_head, write_head
from for_model.methods.registry import METHODS, MethodEntry, method_title, methods_help
from for_model.settings import parse
from for_search.__main__ import main as search
from for_search.index.engines import ENGINES
from for_search.index.index_files import open_index
from for_search.library.library import Library
from for_search.query.evidence import find_evidence
from for_search.query.searcher import load_searcher

MINE = '''
"""Images are grids of plain colours; a text is embedded as the colour that it names."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from for_model.data.dataset import Category, Dataset, ImageRecord
from for_model.errors import StoreError
from for_model.files import sha256_json
from for_model.heads.protocol import TrainableHead
from for_model.methods.build import on_backbone

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}


def names():
    return ["colour-net"]


class Pool:
    def __init__(self, grid):
        self.grid, self.width = grid, 3

    def cells(self, X):
        return X

    def tokens(self, X):
        return torch.cat([X.mean(dim=1, keepdim=True), X], dim=1)

    def attend(self, queries, tokens, return_weights=False):
        weights = (queries @ tokens.transpose(1, 2)).softmax(dim=-1)
        return (weights @ tokens, weights) if return_weights else weights @ tokens

    def project(self, X):
        return X

    def dense_and_whole(self, X):
        tokens = self.tokens(X)
        return X, self.attend(tokens[:, :1], tokens)


class ColourNet:
    """Each cell of 16 pixels a side is its mean colour: Ce = Co = 3."""

    def __init__(self, image_size, device):
        self.name = self.weights = "colour-net"
        self.weights_sha256 = sha256_json("colours")
        self.image_size, self.device = image_size, device
        self.n_cells = self.n_tokens = (image_size // 16) ** 2
        self.width = self.dim = 3
        self.prompts, self.logit_scale = ("{}",), 10.0
        self.pool = Pool(image_size // 16)

    def preprocess(self, image):
        pixels = np.asarray(image.resize((self.image_size, self.image_size)), dtype=np.float32) / 255
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def features(self, pixels):
        return F.avg_pool2d(pixels, 16).flatten(2).transpose(1, 2) + 1e-3

    def encode_texts(self, texts):
        rows = [next((rgb for name, rgb in COLOURS.items() if name in text), (1, 1, 1)) for text in texts]
        return F.normalize(torch.tensor(rows, dtype=torch.float32).reshape(-1, 3), dim=-1)


def load(name, weights, image_size, device):
    return ColourNet(image_size or 32, device)


class CornerHead:
    """The first N cells, each an embedding."""

    name = "corners"

    def __init__(self, n_embeddings):
        self.n = n_embeddings
        self.settings = {"corners": n_embeddings}

    def n_embeddings(self, n_cells):
        return self.n

    def __call__(self, X, pool):
        return F.normalize(pool.project(X)[:, : self.n], dim=-1)

    def evidence(self, X, pool):
        return torch.eye(self.n, X.shape[1]).expand(len(X), -1, -1)


def build_corners(request):
    return on_backbone(request, lambda n_cells: CornerHead(request.n_embeddings or n_cells))


class LearnedHead(TrainableHead):
    """As many embeddings as queries, all of them the mean of the cells, tinted by a parameter."""

    def __init__(self, n_queries):
        super().__init__()
        self.tint = torch.nn.Parameter(torch.ones(n_queries, 3))

    @property
    def settings(self):
        return {"queries": len(self.tint)}

    def n_embeddings(self, n_cells):
        return len(self.tint)

    def forward(self, X, pool):
        return F.normalize(X.mean(dim=1, keepdim=True) * self.tint, dim=-1)

    def evidence(self, X, pool):
        return torch.full((len(X), len(self.tint), X.shape[1]), 1 / X.shape[1])


def learned_head(config, pool):
    return LearnedHead(config.queries)


def read(root, split):
    """Image 0 to 5: two cells by two, of which one has a colour, red, green and blue by turns."""
    folder = Path(root) / split
    folder.mkdir(parents=True, exist_ok=True)
    shown = list(COLOURS)[:3]
    for number in range(6):
        pixels = np.full((32, 32, 3), 60, dtype=np.uint8)
        pixels[16 * (number % 2) :, :16] = 255 * np.array(COLOURS[shown[number % 3]])
        Image.fromarray(pixels).save(folder / f"{number}.png")
    images = tuple(ImageRecord(number, f"{number}.png") for number in range(6))
    categories = (Category("red", "base"), Category("green", "base"), Category("blue", "novel"))
    labels = {number: frozenset({number % 3}) for number in range(6)}
    return Dataset("colours", split, folder, images, categories, labels)


class PlainEngine:
    """All rows in one .npy file, and sums by numpy."""

    kind = "plain"
    small_kind = "plain"
    on_server = False
    file_names = ("rows.npy",)
    resumes = False

    def __init__(self, rows):
        self._rows = rows

    @classmethod
    def build(cls, blocks, n_rows, dim, folder, options):
        np.save(folder / "rows.npy", np.concatenate(list(blocks)))

    @classmethod
    def open(cls, folder, n_rows, dim):
        path = folder / "rows.npy"
        try:
            rows = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{path} is damaged ({type(error).__name__}): build the index again") from error
        if rows.shape != (n_rows, dim):
            raise StoreError(f"{path} is damaged: build the index again")
        return cls(rows)

    recall = None

    read_in_parts = ()

    @classmethod
    def discard(cls, folder):
        pass

    def first_fetch(self, k):
        return 2 * k

    def search_rows(self, queries, n_rows, allowed=None, exact=False):
        scores = np.stack([(self._rows.astype(np.float64) * query).sum(axis=1) for query in queries])
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :n_rows]
        scores = np.take_along_axis(scores, rows, axis=1).astype(np.float32)
        return scores, np.where(np.isfinite(scores), rows, -1)

    def rows(self, start, count):
        return self._rows[start : start + count].astype(np.float32)
'''
CONFIG = 'backbone = "colour-net"\n[data]\ndataset = "colours"\nsplit = "val"\n'


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, and an entry for each thing in it; nothing else of FOR is changed."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    entries = (
        MethodEntry(
            "corners", "Corners", build="mine:build_corners", counted=True, evidence="the corner that it is made of"
        ),
        MethodEntry("learned", "Learned", head="mine:learned_head", counted=True, evidence="the same everywhere"),
    )
    for entry in entries:
        monkeypatch.setitem(METHODS, entry.name, entry)
    monkeypatch.setitem(BACKBONES, "colours", BackboneEntry("colours", names="mine:names", load="mine:load"))
    monkeypatch.setitem(DATASETS, "colours", DatasetEntry("colours", "mine:read", default_split="val"))
    module = importlib.import_module("mine")
    monkeypatch.setitem(ENGINES, "plain", module.PlainEngine)
    (tmp_path / "mine.toml").write_text(CONFIG)
    table = paper_tables.Table(
        "Table of mine: corners", (), ("method",), (paper_tables.Row(("Corners 3",), "corners:3"),)
    )
    suite = paper_tables.Suite("colours", "val", tmp_path / "mine.toml", {"corners": table})
    monkeypatch.setitem(paper_tables.SUITES, "colours", suite)
    yield module
    del sys.modules["mine"]


def test_one_name_each() -> None:
    for registry, name in ((METHODS, "name"), (DATASETS, "name"), (BACKBONES, "kind"), (ENGINES, "kind")):
        assert all(key == getattr(entry, name) for key, entry in registry.items())
    assert all(key == suite.dataset for key, suite in paper_tables.SUITES.items())


def test_from_an_image_to_the_page(mine: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, index = tmp_path / "store", tmp_path / "index"
    what = ["--dataset", "colours", "--root", str(tmp_path / "colours"), "--backbone", "colour-net"]
    assert search(["embed", *what, "--method", "corners:3", "--out", str(store)]) == 0
    assert search(["index", str(store), "--out", str(index), "--engine", "plain"]) == 0
    capsys.readouterr()
    assert search(["search", str(index), "blue", "-k", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [hit["id"] for hit in found["hits"]] == [2, 5]

    assert open_index(index, verify="full").kind == "plain"
    searcher = load_searcher(index, device="cpu")  # the method is rebuilt by its name, its count included
    assert (searcher.method.info.method, searcher.method.info.n_embeddings) == ("corners", 3)
    best = searcher.search("green", 1).hits[0]
    evidence = find_evidence(searcher, best.image.id, searcher.text_query("green").embeddings)
    assert (evidence.meaning, evidence.as_indexed) == ("the corner that it is made of", True)
    assert evidence.cells.tolist() == np.eye(4)[evidence.embedding].reshape(2, 2).tolist()

    library = Library()
    assert library.add(index) == "colours val: Corners 3"
    assert library.searcher("colours val: Corners 3").search("red", 1).hits[0].image.id in (0, 3)
    assert method_title("corners", 3) == "Corners 3"
    assert "corners:N" in methods_help()
    assert "colours" in datasets_help()

    out = tmp_path / "boards"
    score = ["leaderboard", *what, "--methods", "corners:3,clip", "--out", str(out), "--stores", str(tmp_path / "kept")]
    assert evaluate(score) == 0
    with (out / "colours.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["clip", "corners"]  # as in the registry
    assert rows[1]["novel mAP@50"] == "100.00"


def test_a_table_of_ones_own(mine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data" / "colours").mkdir(parents=True)
    out = tmp_path / "boards"
    tables = ["tables", "--dataset", "colours", "--only", "corners", "--data", str(tmp_path / "data")]
    assert evaluate([*tables, "--out", str(out), "--device", "cpu"]) == 0
    board = next(board for board in read_boards(out) if board.dataset == "colours")
    assert board.title == "Table of mine: corners (colours)"
    assert board.ours["novel mAP@50"].tolist() == [100.0]


def test_a_method_with_a_trained_head(mine: ModuleType, tmp_path: Path) -> None:
    backbone = load_backbone("colour-net")
    config = HeadConfig(kind="learned", queries=2)
    head = make_head(config, backbone.pool)
    write_head(tmp_path / "head.safetensors", head, config, "learned", backbone, {})
    method = build_method(str(tmp_path / "head.safetensors"), device="cpu")
    assert (method.info.method, method.info.backbone, method.info.n_embeddings) == ("learned", "colour-net", 2)
    dataset = load_dataset("colours", tmp_path)
    assert method.encode_images(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 3)
    assert len(dataset.images) == 6
    with pytest.raises(UsageError, match="'learned' is trained, and none comes with FOR"):
        build_method("learned", "colour-net")
    assert method_title("learned", 2) == "Learned 2"


def test_what_is_not_registered_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown backbone 'colour-net'; expected one of RN-mini, .*photo-lite$"):
        load_backbone("colour-net")
    with pytest.raises(UsageError, match="unknown method 'corners'"):
        build_method("corners")
    with pytest.raises(UsageError, match="unknown dataset 'colours'"):
        load_dataset("colours")
    with pytest.raises(
        UsageError, match=r"head.kind is 'learned'; expected one of ft-clip, ft-dense-clip, for, for\+$"
    ):
        parse(HeadConfig, {"kind": "learned"})
