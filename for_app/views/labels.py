"""The pseudo-labels of an image as a list: region, name, probability, and whether it is right."""

from typing import Any

from PIL import Image

from for_app.views.pictures import data_uri
from for_app.views.regions import region_colour, region_numbers
from for_app.views.templates import render
from for_search.query.image_labels import ImageLabel, ImageLabels, Verdict

_VERDICTS: dict[Verdict, str] = {"right": "✓ in the image", "wrong": "✗ not in the image", "unknown": "? not annotated"}


def labels_html(found: ImageLabels, stranger_to: str | None = None) -> str:
    """The labels as an HTML list: the number of the region, the name, its probability, and whether it is right.

    stranger_to: a backbone that has never seen such an image, if so, which is said.
    """
    numbers = region_numbers(found)
    facts = []
    if found.n_found > len(found.labels):
        facts.append(f"the first {len(found.labels)} shown")
    if found.missed is not None:
        verdicts = [label.verdict for label in found.labels]
        facts += [f"{verdicts.count(verdict)} {verdict}" for verdict in _VERDICTS]
    return render(
        "labels",
        labels=[_item(label, numbers[label.cluster]) for label in found.labels],
        count=f"{found.n_found:,} label{'s' * (found.n_found != 1)}",
        threshold=f"{found.threshold:g}",
        facts=facts,
        missed=found.missed,
        stranger_to=stranger_to,
    )


def regions_html(drawn: Image.Image, found: ImageLabels) -> str:
    """The drawing of an image's regions as HTML, told to those who don't see it by the names of its labels."""
    names = ", ".join(dict.fromkeys(label.name for label in found.labels))
    return render("regions", picture=data_uri(drawn), told=f"The parts that were labelled: {names or 'none'}")


def _item(label: ImageLabel, number: int) -> dict[str, Any]:
    return {
        "number": number,
        "colour": region_colour(number),
        "name": label.name,
        "percent": f"{100 * label.probability:.1f}",
        "probability": f"{label.probability:.3g}",
        "verdict": label.verdict,
        "verdict_words": None if label.verdict is None else _VERDICTS[label.verdict],
    }
