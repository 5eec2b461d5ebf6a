"""No two things that mean different things share a name."""

from pathlib import Path

from tests.helpers.house import SHARED_NAMES, duplicate_names
from tests.helpers.paths import REPOSITORY

PACKAGES = ("for_model", "for_search", "for_eval", "for_app")
FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def test_a_public_name_is_defined_once() -> None:
    assert len(FILES) > 100
    assert duplicate_names(FILES) == {}


def test_every_exception_is_needed() -> None:
    assert set(duplicate_names(FILES, frozenset())) == SHARED_NAMES


def test_a_name_that_is_defined_twice_is_seen(tmp_path: Path) -> None:
    for name, source in (
        ("a", "def compare(): ...\nclass Verdict: ...\nK, _p = 1, 2"),
        ("b", "compare: int = 1\nif True:\n    K = 2\n_p = 1"),
        ("c", "from b import compare\nclass Verdict: ...\ndef main():\n    K = 2"),
    ):
        (tmp_path / f"{name}.py").write_text(source)
    found = duplicate_names(sorted(tmp_path.glob("*.py")))
    assert {name: [Path(place).stem for place in places] for name, places in found.items()} == {
        "Verdict": ["a", "c"],
        "compare": ["a", "b"],
    }
