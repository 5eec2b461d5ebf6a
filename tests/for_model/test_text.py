"""Prompts, queries and the cache of text embeddings."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from for_model.errors import UsageError
from for_model.methods.protocol import MethodInfo
from for_model.prompts import PROMPTS, fill_prompts, prompted_name
from for_model.text import cached_category_embeddings, embed_categories, embed_queries
from tests.helpers.full_disk import full_disk


class Hashed:
    """An encoder that gives each text a direction of its own and remembers what it was asked."""

    def __init__(self, info: MethodInfo | None = None) -> None:
        self.seen: list[str] = []
        self.info = info or MethodInfo("clip", "fake", "random", "abc", 1, 16, 32, {})

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.seen += texts
        rows = [torch.randn(16, generator=torch.Generator().manual_seed(zlib.crc32(t.encode()))) for t in texts]
        return F.normalize(torch.stack(rows), dim=-1) if rows else torch.zeros(0, 16)


def test_the_prompts_are_the_seven() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 7
    assert all(prompt.count("{}") == 1 and prompt.endswith(".") for prompt in PROMPTS)
    assert fill_prompts("dog")[0] == "itap of a dog."


@pytest.mark.parametrize("name", ["{}", "{0}", "b{0} {b}", "}{", "%s", "\\1"])
def test_braces_in_a_name_mean_nothing(name: str) -> None:
    assert fill_prompts(name)[3] == f"a photo of the large {name}."
    torch.testing.assert_close(embed_queries(Hashed(), [name]), embed_categories(Hashed(), [name]))


def test_a_category_is_the_normalised_mean_over_prompts() -> None:
    names = ["dog", "cat", "traffic light"]
    embeddings = embed_categories(Hashed(), names)
    for name, embedding in zip(names, embeddings, strict=True):
        mean = torch.stack([Hashed().encode_texts([prompt.replace("{}", name)])[0] for prompt in PROMPTS]).mean(0)
        torch.testing.assert_close(embedding, mean / mean.norm())
    assert embeddings.shape == (3, 16)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing(batch_size: int) -> None:
    names = [f"thing {i}" for i in range(7)]
    torch.testing.assert_close(embed_categories(Hashed(), names, batch_size), embed_categories(Hashed(), names))


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("dog", "dog"),
        ("a dog", "dog"),
        ("An  umbrella ", "umbrella"),
        ("THE traffic light", "traffic light"),
        ("a small red car", "small red car"),
        ("small red toy car", None),
        ("a dog.", None),
        ("dogs!", None),
        ("is it a dog?", None),
        ("a dog running on the beach", None),
        ("the", "the"),
        ("a", "a"),
        ("another dog", "another dog"),
        ("theatre", "theatre"),
        ("ananas", "ananas"),
    ],
)
def test_which_queries_are_names(query: str, name: str | None) -> None:
    assert prompted_name(query) == name


def test_queries_keep_their_order_and_their_kind() -> None:
    encoder = Hashed()
    queries = ["a dog on the green grass", "a dog", "Where is it?", "cat"]
    embeddings = embed_queries(encoder, queries)
    torch.testing.assert_close(embeddings[[0, 2]], Hashed().encode_texts(["a dog on the green grass", "Where is it?"]))
    torch.testing.assert_close(embeddings[[1, 3]], embed_categories(Hashed(), ["dog", "cat"]))
    assert embed_queries(encoder, []).shape == (0, 16)
    assert embed_queries(encoder, ["dog", "dog"]).shape == (2, 16)


@pytest.mark.parametrize("text", ["", "  ", "\t\n"])
def test_empty_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="query 2 of 2 is empty"):
        embed_queries(Hashed(), ["dog", text])
    with pytest.raises(UsageError, match="category name 1 of 1 is empty"):
        embed_categories(Hashed(), [text])


def test_one_string_is_not_a_sequence() -> None:
    with pytest.raises(UsageError, match=r"expected a sequence of them: \['dog'\]"):
        embed_queries(Hashed(), "dog")


def cached(method: Any, names: Sequence[str], cache: Path) -> torch.Tensor:
    return cached_category_embeddings(method, names, cache)


def test_the_cache_is_used(tmp_path: Path) -> None:
    names = ["dog", "cat"]
    first = cached(Hashed(), names, tmp_path / "text")
    again = Hashed()
    assert torch.equal(cached(again, names, tmp_path / "text"), first)
    assert again.seen == []
    torch.testing.assert_close(first, embed_categories(Hashed(), names))


def test_the_cache_knows_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = Hashed().info
    cached(Hashed(), ["dog", "cat"], tmp_path)
    for method, names in [
        (Hashed(), ["cat", "dog"]),
        (Hashed(), ["dog"]),
        (Hashed(replace(info, weights_sha256="abd")), ["dog", "cat"]),
        (Hashed(replace(info, backbone="other")), ["dog", "cat"]),
    ]:
        torch.testing.assert_close(cached(method, names, tmp_path), embed_categories(Hashed(), names))
        assert method.seen
    same_text = Hashed(replace(info, method="dense-clip", image_size=64))
    cached(same_text, ["dog", "cat"], tmp_path)
    assert not same_text.seen
    monkeypatch.setattr("for_model.prompts.PROMPTS", ("a {}.",))
    other_prompts = Hashed()
    cached(other_prompts, ["dog", "cat"], tmp_path)
    assert other_prompts.seen


@pytest.mark.parametrize("damage", ["cut", "noise", "shape", "values", "name"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import save_file

    first = cached(Hashed(), ["dog", "cat"], tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "noise":
        path.write_bytes(b"\xff" * 100)
    else:
        wrong = {"shape": first[:1].clone(), "values": first * float("nan"), "name": first}[damage]
        save_file({"other" if damage == "name" else "embeddings": wrong}, path)
    assert torch.equal(cached(Hashed(), ["dog", "cat"], tmp_path), first)
    assert "is damaged" in caplog.text
    again = Hashed()
    assert torch.equal(cached(again, ["dog", "cat"], tmp_path), first)
    assert not again.seen


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cached(Hashed(), ["dog"], tmp_path / "file" / "text").shape == (1, 16)
    assert "can't be written" in caplog.text


def test_a_cache_on_a_full_disk_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with full_disk():
        assert cached(Hashed(), ["dog"], tmp_path / "text").shape == (1, 16)
    assert "can't be written" in caplog.text
    assert list((tmp_path / "text").iterdir()) == []


def test_the_cache_folder_is_fors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path))
    method: Any = Hashed()
    cached_category_embeddings(method, ["dog"])
    assert [path.suffix for path in (tmp_path / "text").iterdir()] == [".safetensors"]
