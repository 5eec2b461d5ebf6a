"""`index --answers`, `sketch-encoder` and `verify` of sketches, on a small real index."""

from pathlib import Path

import pytest

from for_search.__main__ import main
from for_search.index.sketches.sketch_files import kept_encoder
from tests.helpers.store_making import make_store, random_units
from tests.helpers.tiny_index import make_searcher

# Python 3.12 warns when scenes are drawn in processes while torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_answers_are_kept_up_to_date_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, index = tmp_path / "store", tmp_path / "index"
    make_store(store, random_units((9, 3, 40)))
    assert main(["index", str(store), "--out", str(index)]) == 0
    assert kept_encoder(index) is None
    assert main(["index", str(store), "--out", str(index), "--answers"]) == 0
    assert f"{index}: sketches of 864 bytes, principal axes" in capsys.readouterr().out
    encoder = kept_encoder(index)
    assert encoder is not None
    assert main(["index", str(store), "--out", str(index), "--rebuild"]) == 0  # without being asked again
    assert "sketches of 864 bytes" in capsys.readouterr().out
    assert kept_encoder(index).sha256 == encoder.sha256  # type: ignore[union-attr]
    assert main(["verify", str(index)]) == 0
    assert "sketches/sketches.bin: sound" in capsys.readouterr().out
    [path] = index.rglob("sketches.bin")
    path.write_bytes(bytes(864))
    assert main(["verify", str(index)]) == 2
    assert "sketches.bin is damaged" in capsys.readouterr().out
    assert main(["index", str(store), "--out", str(index), "--answers", str(tmp_path / "none")]) == 2
    assert "no sketch encoder at" in capsys.readouterr().err


@pytest.mark.slow
def test_an_encoder_is_trained_on_an_index_and_used_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_searcher(tmp_path, 12).index
    (tmp_path / "names.txt").write_text("dog\numbrella\n")
    out = tmp_path / "encoder.safetensors"
    train = ["sketch-encoder", str(index.path), "--root", str(tmp_path / "scenes"), "--weights", "random"]
    train += ["--out", str(out), "--steps", "2"]
    assert main([*train, "--texts", str(tmp_path / "names.txt")]) == 0
    assert f"{out}: 32 numbers of 8 bits" in capsys.readouterr().out
    [store] = [path.parent for path in tmp_path.rglob("timing.json")]
    assert main(["index", str(store), "--out", str(index.path), "--answers", str(out)]) == 0
    assert f"trained on {tmp_path / 'names.txt'}" in capsys.readouterr().out
    assert main([*train, "--texts", "captions"]) == 2
    assert capsys.readouterr().err.count("\n") <= 2
