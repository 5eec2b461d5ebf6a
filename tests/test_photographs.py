"""Real photographs of COCO, from a folder to the page, indexed once with photo-lite for all tests of this file."""

import gc
import shutil
from pathlib import Path

import pytest
from PIL import Image

from for_model.backbones.photo_packages import NAME, missing_packages
from for_model.data.coco import load_coco
from for_model.data.dataset import Dataset
from for_model.methods.build import build_method
from for_search.library.folder_index import PHOTO_METHOD, folder_index
from for_search.query.searcher import Searcher, load_searcher
from tests import screenshot
from tests.helpers.browser import CHROMIUM
from tests.helpers.paths import SHARED
from tests.helpers.ports import free_port
from tests.helpers.serving import close_builders_loop

COCO_TINY = SHARED / "coco-tiny"
GAMES = {"tennis racket", "baseball bat", "baseball glove", "frisbee"}

pytestmark = [pytest.mark.data, pytest.mark.photos, pytest.mark.slow, pytest.mark.gradio]


def shown(coco: Dataset) -> dict[str, set[str]]:
    """What COCO says that each photograph shows, by the photograph's name."""
    return {image.path: {coco.categories[i].name for i in coco.labels[image.id]} for image in coco.images}


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """Over half of the 80 photographs, and the few of the others that show something rare which is asked for below.

    The index stays in the cache that all tests of a run have, where the page finds it.
    """
    if not COCO_TINY.is_dir():
        pytest.skip(f"{COCO_TINY} is not there")
    if missing_packages():
        pytest.skip("the packages of photo-lite are not installed: make install-photos")
    folder = tmp_path_factory.mktemp("photographs")
    for number, (name, things) in enumerate(shown(load_coco(COCO_TINY, "val2017")).items()):
        if number % 2 or things & {"dog", "train", *GAMES}:
            shutil.copy(COCO_TINY / "val2017" / name, folder)
    method = build_method(PHOTO_METHOD, NAME, device="cpu")
    return load_searcher(folder_index(folder, method, progress=False), method=method)


def test_real_photographs_are_found(searcher: Searcher) -> None:
    """The best photographs show what was asked for, as COCO's annotations say."""
    things = shown(load_coco(COCO_TINY, "val2017"))
    assert 40 <= len(searcher.index.images) <= 45
    for query, k, wanted, expected in (
        ("a dog", 3, {"dog"}, 2),
        ("a train", 1, {"train"}, 1),
        ("food on a table", 4, {"dining table"}, 4),
        ("people playing tennis", 4, GAMES, 3),
    ):
        found = [things[hit.image.path] for hit in searcher.search(query, k).hits]
        assert sum(bool(wanted & each) for each in found) >= expected, (query, found)


@pytest.mark.browser
def test_a_picture_of_the_page_on_real_photographs(searcher: Searcher, tmp_path: Path) -> None:
    """The picture for docs/photo-lite.md, which nobody may pass on: whoever has the photographs makes it again."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    picture = tmp_path / "photos.png"
    screenshot.main(
        [str(picture), "--query", "food on a table", "--images", str(searcher.image_root), "--port", str(free_port())]
    )
    with Image.open(picture) as image:
        assert image.size == screenshot.WIDE
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 5000  # photographs, not placeholders
    close_builders_loop()
    gc.collect()
