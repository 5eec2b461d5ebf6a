"""The pseudo-labels of an image as a list: region, name, probability, and whether it is right."""

import html

from for_app.views.regions import region_colour, region_numbers
from for_search.query.image_labels import ImageLabel, ImageLabels, Verdict

_VERDICTS: dict[Verdict, str] = {"right": "✓ in the image", "wrong": "✗ not in the image", "unknown": "? not annotated"}


def labels_html(found: ImageLabels) -> str:
    """The labels as an HTML list: the number of the region, the name, its probability, and whether it is right."""
    numbers = region_numbers(found)
    items = "".join(_item(label, numbers[label.cluster]) for label in found.labels)
    threshold = f"{found.threshold:g}"
    if not found.labels:
        return f"<p>No name reaches a probability of {threshold}: lower the threshold.</p>{_missed(found)}"
    counts = [f"<b>{found.n_found:,} label{'s' * (found.n_found != 1)}</b> above {threshold}"]
    if found.n_found > len(found.labels):
        counts.append(f"the first {len(found.labels)} shown")
    if found.missed is not None:
        verdicts = [label.verdict for label in found.labels]
        counts += [f"{verdicts.count(verdict)} {verdict}" for verdict in _VERDICTS]
    return f"<p>{' · '.join(counts)}</p><ol>{items}</ol>{_missed(found)}"


def _item(label: ImageLabel, number: int) -> str:
    red, green, blue = region_colour(number)
    verdict = "" if label.verdict is None else f'<span class="{label.verdict}">{_VERDICTS[label.verdict]}</span>'
    return (
        f'<li><span class="region" title="region {number} of the image" style="background:rgb({red},{green},{blue})">'
        f'{number}</span><span class="name">{html.escape(label.name)}</span>'
        f'<span class="bar"><i style="width:{100 * label.probability:.1f}%"></i></span>'
        f'<span class="probability">{label.probability:.3g}</span>{verdict}</li>'
    )


def _missed(found: ImageLabels) -> str:
    if not found.missed:
        return ""
    return f"<p>Also in the image by its annotations: {html.escape(', '.join(found.missed))}</p>"
