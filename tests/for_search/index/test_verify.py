"""`python -m for_search verify`: every byte of what was written."""

import shutil
from pathlib import Path

import pytest
import torch

from for_model.backbones.clip_resnet import ClipResnet, load_clip_resnet
from for_model.errors import StoreError, UsageError, WeightsError
from for_model.methods.head_files import load_head, read_head_file
from for_search.__main__ import main
from for_search.index.index_files import build_index, open_index
from for_search.index.verify import verify
from for_search.store.store import open_store
from tests.helpers.store_making import make_store, random_units
from tests.helpers.tiny_index import write_random_head


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    make_store(folder / "store", random_units((20, 2, 8)))
    build_index(folder / "store", folder / "index")
    return folder


@pytest.fixture(scope="module")
def backbone() -> ClipResnet:
    torch.manual_seed(0)
    return load_clip_resnet("RN-mini", "random", device="cpu")


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("lock", "timing.json")]


def test_a_line_for_each_file(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(made / "store")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "manifest.json: sound",
        f"{open_store(made / 'store').images.path.name}: sound",
        *(f"embeddings-0000{i}.npy: sound" for i in range(3)),
    ]
    assert main(["verify", str(made / "index")]) == 0
    expected = ["manifest.json: sound", "images-000001.sqlite: sound", "segment-000001/index.faiss: sound"]
    assert capsys.readouterr().out.splitlines() == expected


def answer(path: Path) -> object:
    if path.name == "store":
        return open_store(path).embeddings()
    return open_index(path).search(random_units((1, 8), seed=1), 3)


@pytest.mark.parametrize("what", ["store", "index"])
def test_every_flip_is_found_and_named(made: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(made / what, tmp_path / what)
    for path in files_of(tmp_path / what):
        content = path.read_bytes()
        for position in range(0, len(content), max(1, len(content) // 40)):
            path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            damaged = [name for name, error in verify(tmp_path / what) if error]
            assert damaged == [str(path.relative_to(tmp_path / what))], position
            with pytest.raises(StoreError):  # nor is it ever answered from
                answer(tmp_path / what)
        path.write_bytes(content)
    assert not any(error for _, error in verify(tmp_path / what))


def test_damage_is_told_and_exits_with_2(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "store", tmp_path / "store")
    path = tmp_path / "store" / "embeddings-00001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "store" / "embeddings-00002.npy").unlink()
    assert main(["verify", str(tmp_path / "store")]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2] == "embeddings-00000.npy: sound"
    assert "embeddings-00001.npy is damaged" in captured.out.splitlines()[3]
    assert "embeddings-00002.npy is missing" in captured.out.splitlines()[4]
    assert captured.err.count("\n") == 1
    assert "2 of its files" in captured.err


def test_what_is_none_of_the_three(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no store, index or head"):
            list(verify(path))


def test_a_flip_in_a_head_is_found_before_it_is_used(backbone: ClipResnet, tmp_path: Path) -> None:
    path = write_random_head(tmp_path / "head.safetensors", backbone)
    assert list(verify(path)) == [("head.safetensors", None)]
    content = path.read_bytes()
    training = content.index(b"training")
    for position in (len(content) - 1, len(content) // 2, training + 12, 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(WeightsError):
            load_head(read_head_file(path), backbone)
        assert [error is not None for _, error in verify(path)] == [True]
    path.write_bytes(content)
    load_head(read_head_file(path), backbone)
