"""Every example of docs/api.md, run as it stands, one after the other as a reader does."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from for_search.library.library import Library
from tests.helpers.pages import Served
from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import ask

DOCS = REPOSITORY / "docs" / "api.md"

pytestmark = [pytest.mark.slow, pytest.mark.gradio]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_every_endpoint_has_an_example(served: Served) -> None:
    from gradio_client import Client

    named = Client(served.url, verbose=False).view_api(return_format="dict", print_info=False)["named_endpoints"]
    examples = "".join(blocks("python"))
    assert named
    for name in named:
        assert f'api_name="{name}"' in examples
        assert f"## `{name[1:]}`" in DOCS.read_text(encoding="utf-8")


def test_every_example_runs(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Library, "built_in", lambda: served.library)
    pixels = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    name = next(name for name in served.library.names if "CLIP" in name)
    shared: dict[str, Any] = {}
    for block in blocks("python"):
        code = block.replace("http://127.0.0.1:7860", served.url).replace("miniscenes val: CLIP", name)
        exec(compile(code, DOCS.name, "exec"), shared)
    printed = capsys.readouterr().out
    assert printed.count("'rank': 1") == 2  # the search over the network, and the one without a server
    (command,) = blocks("sh")
    program, silent, url, _, header, _, body = shlex.split(command)  # as curl sends it, which may not be installed
    assert (program, silent) == ("curl", "-s")
    key, _, value = header.partition(": ")
    path = url.removeprefix("http://127.0.0.1:7860")
    status, answer = ask(served.url, path, body.encode(), {key: value})
    assert status == 200
    assert len(json.loads(answer)["data"][0]["hits"]) == 5
