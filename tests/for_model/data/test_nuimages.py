"""nuImages's reader against its own devkit, on a folder written after the published schema."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from nuimages import NuImages
from nuimages.utils.utils import mask_decode

from for_eval.__main__ import main as eval_main
from for_model.data.dataset import ImageRecord
from for_model.data.nuimages import PROMPT_NAMES, load_nuimages, read_split
from for_model.data.registry import load_dataset
from for_model.errors import DataError, UsageError
from for_model.training.config import load_config
from tests.helpers.nuimages_making import change, key_frame, token, write_nuimages
from tests.helpers.paths import CONFIGS

CAR, ADULT, BUS, DOG = "vehicle.car", "human.pedestrian.adult", "vehicle.bus.rigid", "animal"
# Of 40 train images the car is in 40, the adult in 2 (5%: base), the bus in 1 (novel), the animal in none (other).
TRAIN = [[CAR, CAR, ADULT], [CAR, ADULT, BUS, BUS], *([CAR] for _ in range(38))]
VAL = [[DOG, CAR], [], [ADULT, BUS, ADULT]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nuimages(tmp_path_factory.mktemp("nuimages"), train=TRAIN, val=VAL)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "nuimages"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_are_the_devkits(made: Path, split: str) -> None:
    nuim = NuImages(f"v1.0-{split}", str(made), lazy=False, verbose=False)
    dataset = read_split(made, split)
    names = [category.name for category in dataset.categories]
    assert len(dataset.images) == len(nuim.sample)
    for sample in nuim.sample:
        objects, _ = nuim.list_anns(sample["token"], verbose=False)
        categories = [nuim.get("object_ann", key)["category_token"] for key in objects]
        expected = {PROMPT_NAMES[nuim.get("category", key)["name"]] for key in categories}
        found = dataset.labels.get(sample["key_camera_token"], frozenset())
        assert {names[i] for i in found} == expected
    paths = {row["token"]: row["filename"] for row in nuim.sample_data}
    assert [image.path for image in dataset.images] == [paths[image.id] for image in dataset.images]
    assert all((dataset.image_root / image.path).is_file() for image in dataset.images)


def test_what_an_image_and_a_category_are(made: Path) -> None:
    dataset = read_split(made, "val")
    assert (dataset.name, dataset.split, dataset.image_root) == ("nuimages", "val", made)
    number = [key_frame("val", n) for n in range(3)]
    assert sorted(number) == [image.id for image in dataset.images]
    path = f"samples/CAM_FRONT/n003-val__CAM_FRONT__{1_514_952_221_190_440 + 2}.jpg"
    assert ImageRecord(number[2], path) in dataset.images
    assert [category.name for category in dataset.categories] == list(
        PROMPT_NAMES.values()
    )  # the surfaces aren't there
    assert dataset.relevance(number).sum(axis=0).tolist() == [2, 0, 2]


def test_the_23_classes_have_names_of_their_own_for_prompts() -> None:
    assert len(PROMPT_NAMES) == len(set(PROMPT_NAMES.values())) == 23
    assert not any(set("._") & set(name) for name in PROMPT_NAMES.values())


def test_a_class_that_is_not_known_is_named_by_its_last_part(root: Path) -> None:
    change(root, "val", "category", 0, name="animal.guide_dog")
    assert read_split(root, "val").categories[0].name == "guide dog"


def groups(root: Path, split: str) -> dict[str, str]:
    return {category.name: category.group for category in load_nuimages(root, split).categories}


@pytest.mark.parametrize("split", ["train", "val"])
def test_groups_follow_the_shares_of_train(made: Path, split: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = groups(made, split)
    assert {name for name, group in found.items() if group == "base"} == {"car", "adult"}
    assert {name for name, group in found.items() if group == "novel"} == {"rigid bus"}
    assert found["animal"] == "other"  # although it is in val
    assert Counter(found.values())["other"] == 20
    assert "2 base, 1 novel, 20 other categories, from the shares of train, novel below 5%" in caplog.text


def test_without_train_a_split_is_measured_by_itself(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shutil.rmtree(root / "v1.0-train")
    assert {name for name, group in groups(root, "val").items() if group == "base"} == {
        "car", "adult", "animal", "rigid bus"
    }  # fmt: skip
    assert "from the shares of val" in caplog.text


def test_the_file_of_classes_is_written_read_and_edited(
    root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    command = ["classes", "--dataset", "nuimages", "--root", str(root)]
    assert eval_main(command) == 0
    file = root / "classes.toml"
    assert capsys.readouterr().out == f"{file}: 2 base, 1 novel, 20 other\n"
    text = file.read_text()
    assert f"#   python -m for_eval classes --root {root} --split train --novel-below 0.05 --out {file}\n" in text
    assert '[classes."rigid bus"]\nimages = 1\nshare = 0.025000\ngroup = "novel"\n' in text
    assert text.index("car") < text.index("adult") < text.index("rigid bus") < text.index("animal")

    file.write_text(text.replace('share = 0.050000\ngroup = "base"', 'share = 0.050000\ngroup = "other"'))
    assert groups(root, "val")["adult"] == "other"
    assert groups(root, "val")["rigid bus"] == "novel"
    assert f"from {file}" in caplog.text

    assert eval_main(command) == 2
    assert "is there already, and may have been edited" in capsys.readouterr().err
    other = root / "strict.toml"
    assert eval_main([*command, "--novel-below", "0.051", "--out", str(other)]) == 0
    assert '[classes."adult"]\nimages = 2\nshare = 0.050000\ngroup = "novel"' in other.read_text()


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1", "nan"])
def test_a_share_out_of_range_is_refused(made: Path, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert eval_main(["classes", "--root", str(made), f"--novel-below={share}"]) == 2
    assert "expected a share of the images above 0, at most 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('group = "novel"', 'group = "rare"', "'rigid bus' has group 'rare', expected one of base, novel, other"),
        ('[classes."animal"]', '[classes."anemone"]', "differ in: anemone, animal"),
        ("[classes", "[[[", "can't be read"),
        ("classes.", "klasses.", r"its \[classes\] and the dataset's categories differ"),
    ],
)
def test_a_damaged_file_of_classes_is_named(root: Path, old: str, new: str, message: str) -> None:
    assert eval_main(["classes", "--root", str(root)]) == 0
    file = root / "classes.toml"
    body = file.read_text()
    head = body.index("dataset =")
    file.write_text(body[:head] + body[head:].replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        load_nuimages(root, "val")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("table", ["category", "sample", "sample_data", "object_ann"])
def test_missing_tables_are_named(root: Path, table: str) -> None:
    (root / "v1.0-val" / f"{table}.json").unlink()
    with pytest.raises(
        DataError, match=rf"v1\.0-val/{table}\.json doesn't exist: expected nuImages v1\.0 as published"
    ):
        read_split(root, "val")


def test_a_missing_split_or_folder_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"v1\.0-mini/category\.json doesn't exist"):
        load_nuimages(root, "mini")
    with pytest.raises(UsageError, match="nuimages has no split 'test': choose one of train, val, mini"):
        load_nuimages(root, "test")
    (root / "samples").rename(root / "images")
    with pytest.raises(DataError, match="samples doesn't exist: unpack the samples archive"):
        load_nuimages(root, "val")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff", "{}", "[3]", "null"])
@pytest.mark.parametrize("table", ["category", "object_ann"])
def test_what_is_no_table_is_named(root: Path, table: str, text: str) -> None:
    path = root / "v1.0-val" / f"{table}.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="is damaged") as caught:
        read_split(root, "val")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "row", "values", "message"),
    [
        ("sample", 0, {"key_camera_token": "0" * 32}, "isn't in sample_data.json"),
        ("sample", 0, {"key_camera_token": None}, "key_camera_token None"),
        ("object_ann", 0, {"sample_data_token": token("val", "sweep", 0)}, "is no key frame of a camera"),
        ("object_ann", 0, {"category_token": "0" * 32}, "isn't in category.json"),
        ("object_ann", 0, {"category_token": []}, "category_token []"),
        ("category", 0, {"name": ""}, "name ''"),
        ("category", 0, {"name": "some.car"}, "names that differ"),
        ("sample_data", 0, {"token": 3}, "token 3"),
        ("sample_data", 1, {"filename": "samples/../../etc/passwd"}, "not a path within samples/"),
        ("sample_data", 1, {"filename": "/samples/x.jpg"}, "not a path within samples/"),
        ("sample_data", 1, {"filename": "v1.0-val/x.jpg"}, "not a path within samples/"),
        ("sample_data", 1, {"filename": None}, "not a path within samples/"),
    ],
)
def test_a_damaged_record_is_named(root: Path, table: str, row: int, values: dict[str, Any], message: str) -> None:
    change(root, "val", table, row, **values)
    with pytest.raises(DataError) as caught:
        read_split(root, "val")
    assert message in str(caught.value)
    assert f"v1.0-val/{table}.json is damaged" in str(caught.value)


def test_a_split_without_images_is_refused(root: Path) -> None:
    (root / "v1.0-val" / "sample.json").write_text("[]")
    with pytest.raises(DataError, match=r"sample\.json is damaged: it lists no samples"):
        read_split(root, "val")


def test_a_surface_annotated_as_an_object_is_no_label(root: Path) -> None:
    change(root, "val", "object_ann", 0, category_token=token("category", "vehicle.ego"))
    assert read_split(root, "val").relevance([key_frame("val", 0)]).sum() == 1  # the car beside it


def test_the_registry_and_the_papers_config_find_it(made: Path) -> None:
    assert load_dataset("nuimages", made).split == "val"
    data = load_config(CONFIGS / "for-nuimages.toml", [f"data.root={made}"]).data
    dataset = load_dataset(data.dataset, Path(data.root), data.split)
    assert (dataset.split, len(dataset.images)) == ("train", 40)
    assert {category.group for category in dataset.categories} == {"base", "novel", "other"}
    with pytest.raises(UsageError, match="dataset 'nuimages' needs a folder"):
        load_dataset("nuimages")


def test_tables_are_as_the_schema_says(made: Path) -> None:
    """The folder that these tests rest on: every token that a record names is there, by the devkit's own look-up."""
    nuim = NuImages("v1.0-train", str(made), lazy=False, verbose=False)
    for row in nuim.object_ann:
        assert nuim.shortcut("object_ann", "sample", row["token"])["key_camera_token"] == row["sample_data_token"]
        assert nuim.get("attribute", row["attribute_tokens"][0])["name"] == "vehicle.moving"
    for row in nuim.sample_data:
        assert nuim.shortcut("sample_data", "sensor", row["token"])["channel"] in ("CAM_FRONT", "LIDAR_TOP")
    assert mask_decode(nuim.object_ann[1]["mask"])[40].nonzero()[0].tolist() == list(range(30, 56))
    assert json.loads((made / "v1.0-train" / "log.json").read_text())[0]["token"] == nuim.sample[0]["log_token"]
