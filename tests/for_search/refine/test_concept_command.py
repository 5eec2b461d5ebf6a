"""`python -m for_search concept ...` and the API's functions, on a small real index."""

import json
from pathlib import Path

import pytest

from for_model.errors import StoreError, UsageError
from for_search import api
from for_search.__main__ import main
from for_search.library.concept_texts import concepts_folder, keep
from for_search.library.library import Library
from for_search.refine.feedback import feedback_of
from for_search.refine.learners.refiners import DEFAULT_REFINER
from tests.helpers.tiny_index import make_searcher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("concept-command")


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    library = Library(weights="random", concepts=folder / "concepts")
    library.add_opened(make_searcher(folder, 30))
    return library


def _marks(library: Library) -> list[dict[str, object]]:
    hits = api.search(library, "dog", 6)["hits"]
    return [{"image": hit["id"], "right": rank % 2 == 0} for rank, hit in enumerate(hits)]


@pytest.mark.slow
def test_refine_and_answer_all(library: Library) -> None:
    searched, refined = api.search(library, "dog", 6), api.refine(library, "dog", [], 6)
    keys = ("rank", "id", "score", "embedding")
    assert [[hit[key] for key in keys] for hit in refined["hits"]] == [
        [hit[key] for key in keys] for hit in searched["hits"]
    ]
    assert refined["hits"][0]["probability"] is None
    marks = _marks(library)
    refined = api.refine(library, "dog", [*marks, {"image": 10**6, "right": True}], 3)
    assert (refined["n_right"], refined["n_wrong"], refined["n_gone"], len(refined["hits"])) == (3, 3, 1, 3)
    assert not {hit["id"] for hit in refined["hits"]} & {mark["image"] for mark in marks}
    assert 0 < refined["hits"][0]["probability"] < 1
    whole = api.answer_all(library, "dog", marks, threshold=0.01)
    pages = [api.answer_all(library, "dog", marks, threshold=0.01, first=n, count=2)["images"] for n in range(0, 30, 2)]
    assert [image for page in pages for image in page] == whole["images"]
    assert len(whole["images"]) == whole["n_images"] > 3
    json.dumps([refined, whole])
    # Nothing of one visitor's marks is left for the next.
    assert api.refine(library, "dog", [], 6)["hits"] == api.refine(library, "dog", [], 6)["hits"]
    assert [hit["id"] for hit in api.search(library, "dog", 6)["hits"]] == [hit["id"] for hit in searched["hits"]]
    for wrong in (
        lambda: api.refine(library, "dog", marks, 0),
        lambda: api.refine(library, "", []),
        lambda: api.answer_all(library, "dog", marks, first=-1),
        lambda: api.answer_all(library, "dog", []),
        lambda: api.refine(library, "dog", [{"image": 1}]),
        lambda: api.refine(library, "dog", marks, refiner="svm"),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_a_concept_from_marks_to_files(folder: Path, library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "marks.json").write_text(json.dumps(_marks(library)))
    concepts, index, marks = str(folder / "concepts"), str(folder / "index"), str(folder / "marks.json")
    kept = ["--concepts", concepts]
    create = ["concept", "create", "jumping", index, "--marks", marks, "--text", "dog", *kept]
    assert api.concepts(library) == {"concepts": [], "broken": []}
    assert main(create) == 0
    assert capsys.readouterr().out == f"{folder / 'concepts' / 'jumping.json'}: 3 right, 3 wrong\n"
    assert main(create) == 2
    assert "is there already" in capsys.readouterr().err
    copy = ["concept", "create", "copy", index, "--marks", f"{concepts}/jumping.json", *kept]
    assert main(copy) == 0
    assert main(["concept", "list", *kept]) == 0
    assert "copy: dog, 3 right, 3 wrong\njumping: dog, 3 right, 3 wrong\n" in capsys.readouterr().out
    (folder / "concepts" / "broken.json").write_text("{}")
    assert [each["name"] for each in api.concepts(library)["concepts"]] == ["copy", "jumping"]
    assert [each["name"] for each in api.concepts(library)["broken"]] == ["broken"]
    assert str(folder) not in json.dumps(api.concepts(library))
    both = str(folder / "both")
    export = ["concept", "export", "jumping", index, "--out", both, "--weights", "random", *kept]
    assert main([*export, "--also", "copy"]) == 2
    assert "--also adds categories to --form coco" in capsys.readouterr().err
    assert main([*export, "--form", "coco", "--also", "copy"]) == 0
    written = json.loads((Path(both) / "annotations" / "instances_concept.json").read_text())
    assert [category["name"] for category in written["categories"]] == ["jumping", "copy"]
    assert main([*export, "--form", "coco"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    hits = api.search(library, "concept:jumping", 5)["hits"]
    assert len(hits) == 5
    with pytest.raises(UsageError, match="no concept is called 'none'"):
        api.search(library, "concept:none")
    assert main(["search", index, "concept:jumping", "-k", "5", "--json", "--weights", "random", *kept]) == 0
    assert [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]] == [hit["id"] for hit in hits]
    assert main(["concept", "show", "jumping", index, "--weights", "random", *kept]) == 0
    assert "% right" in capsys.readouterr().out
    out = str(folder / "answer.csv")
    assert main(["concept", "export", "jumping", index, "--out", out, "--weights", "random", *kept]) == 0
    assert Path(out).read_text().startswith("image,path,probability,marked\n")
    assert main(["concept", "delete", "copy", *kept]) == 0
    assert main(["concept", "show", "copy", *kept]) == 2


def test_a_concept_stands_wherever_a_text_does(folder: Path, library: Library) -> None:
    marks, name = _marks(library), library.default
    feedback = feedback_of(marks)
    keep(library, "leaping", name, "dog", feedback, replace=True)
    by_marks = api.refine(library, "dog", marks, 6)["hits"]
    assert api.refine(library, "concept:leaping", [], 6)["hits"] == by_marks
    assert api.answer_all(library, "concept:leaping", [])["images"] == api.answer_all(library, "dog", marks)["images"]
    told = api.most_telling(library, "concept:leaping", [])["hits"]
    assert [hit["id"] for hit in told] == [hit["id"] for hit in api.most_telling(library, "dog", marks)["hits"]]
    assert len({hit["id"] for hit in told} - {mark["image"] for mark in marks}) == 3
    compared = api.compare(library, "concept:leaping", 4)
    found = api.search(library, "concept:leaping", 4)["hits"]
    assert [hit["id"] for hit in compared["methods"][0]["hits"]] == [hit["id"] for hit in found]
    assert api.evidence(library, "concept:leaping", found[0]["id"])["embedding"] == found[0]["embedding"]
    both = api.search(library, "", 30, all_of=["concept:leaping", "cat"])["hits"]
    known = {hit["id"]: hit["probability"] for hit in api.refine(library, "concept:leaping", [], 30)["hits"]}
    assert any(hit["id"] in known for hit in both)
    for hit in both:
        if hit["id"] in known:
            assert hit["things"][0]["probability"] == pytest.approx(known[hit["id"]], abs=1e-3)
    changed = api.refine(library, "concept:leaping", [{"image": marks[0]["image"], "right": False}], 6)
    assert (changed["n_right"], changed["n_wrong"]) == (2, 4)  # what is marked now goes before
    assert api.refine(library, "concept:leaping", [], 6, refiner="branches")["refiner"] == "branches"
    keep(library, "boxes", name, "dog", feedback, replace=True)
    path = folder / "concepts" / "boxes.json"
    path.write_text(path.read_text().replace(f'"{DEFAULT_REFINER}"', '"branches"'))
    assert len(api.search(library, "concept:boxes", 3)["hits"]) == 3
    by_boxes = api.search(library, "concept:boxes", 1)["hits"][0]
    assert api.evidence(library, "concept:boxes", by_boxes["id"])["embedding"] == by_boxes["embedding"]
    boxes, cat = api.search(library, "cat", 3, all_of=["concept:boxes"])["hits"][0]["things"][::-1]
    assert (boxes["text"], cat["text"]) == ("concept:boxes", "cat")


def test_a_concept_of_other_images_is_refused(library: Library) -> None:
    """The ids of another dataset's images are those of other images, whatever space they are in."""
    keep(library, "elsewhere", library.default, "dog", feedback_of(_marks(library)), replace=True)
    path = concepts_folder(library) / "elsewhere.json"
    path.write_text(path.read_text().replace('"val"', '"train"'))
    with pytest.raises(StoreError, match="marked on images of miniscenes train, the index holds those of"):
        api.search(library, "concept:elsewhere")


def test_ids_as_texts_are_those_of_the_index(library: Library) -> None:
    hit = api.search(library, "dog", 1)["hits"][0]
    found = api.refine(library, "dog", [{"image": str(hit["id"]), "right": True}], 30)
    assert hit["id"] not in {each["id"] for each in found["hits"]}


def test_a_hundred_thousand_marks_are_one_line(
    folder: Path, library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = [{"image": number, "right": True} for number in range(100_000)]
    line = "100,000 marks, expected at most 2,000"
    with pytest.raises(UsageError, match=line):
        api.refine(library, "dog", marks)
    file = folder / "many.json"
    file.write_text(json.dumps(marks))
    create = ["concept", "create", "many", str(folder / "index"), "--marks", str(file), "--text", "dog"]
    assert main([*create, "--concepts", str(folder / "concepts")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "concepts" / "many.json").exists()
    contradictory = [{"image": 1, "right": True}, {"image": 1, "right": False}]
    file.write_text(json.dumps(contradictory))
    assert main([*create, "--concepts", str(folder / "concepts")]) == 2
    assert "image 1 is marked right and wrong" in capsys.readouterr().err


def test_the_whole_answer_page_by_page(library: Library, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(library.searcher(library.default).index.path)
    (folder / "marks.json").write_text(json.dumps(_marks(library)))
    where = ["--concepts", str(folder / "paged")]
    create = ["concept", "create", "paged", index, "--text", "dog", "--marks", str(folder / "marks.json"), *where]
    assert main([*create, "--threshold", "0.01"]) == 0
    show = ["concept", "show", "paged", index, "--weights", "random", *where]
    capsys.readouterr()
    pages = []
    for page in (["--count", "100"], ["--count", "2"], ["--first", "2", "--count", "100", "--exact"]):
        assert main([*show, *page]) == 0
        pages.append([line for line in capsys.readouterr().out.splitlines() if line[:6].strip().isdigit()])
    assert len(pages[0]) > 3
    assert pages[0] == pages[1] + pages[2]
    assert "marked" in pages[0][0]
    assert main([*show, "--count", "-1"]) == 2
    assert "expected 0 or more" in capsys.readouterr().err
