"""A comparison of methods as HTML: a column a method, hits marked where labels tell, and how far the methods agree."""

import base64
import html
import io

from PIL import Image

from for_app.views.presentation import pictures_of
from for_search.query.searcher import Searcher
from for_search.query.side_by_side import MethodAnswer, SideBySide

_PICTURE_PX = 240
# Shape and word as well as colour, so that nobody needs to tell red from green.
_MARKS = {True: ("right", "✓", "labelled so"), False: ("wrong", "✗", "not labelled so"), None: ("", "", "not known")}


def comparison_html(comparison: SideBySide, searchers: dict[str, Searcher]) -> str:
    """A comparison and its pictures, everything that comes from users or files escaped."""
    columns = "".join(_column(comparison, answer, searchers[answer.name]) for answer in comparison.answers)
    return f'<p>{_summary(comparison)}</p><div class="methods">{columns}</div>{_agreement(comparison)}'


def _summary(comparison: SideBySide) -> str:
    query = f"<b>{html.escape(comparison.query.strip())}</b>"
    if comparison.category is None:
        return f"{query} is no category that these images are labelled with, so the hits aren't marked."
    return (
        f"{query}: {comparison.n_relevant:,} images are labelled with it. ✓ right, ✗ wrong; AP@50 is the query's "
        "average precision over the best 50, in percent."
    )


def _column(comparison: SideBySide, answer: MethodAnswer, searcher: Searcher) -> str:
    hits = answer.result.hits
    shown = pictures_of(searcher, [hit.image for hit in hits], _PICTURE_PX)
    relevant = answer.relevant or (None,) * len(hits)
    items = []
    for rank, (hit, (image, problem), right) in enumerate(zip(hits, shown, relevant, strict=True), start=1):
        kind, mark, words = _MARKS[right]
        caption = " · ".join(part for part in (f"{mark} {rank}".strip(), f"{hit.score:.3f}", problem) if part)
        told = f"rank {rank}, score {hit.score:.3f}" + (f", {words}" if answer.relevant else "")
        items.append(
            f'<li class="{kind}"><img src="{_data_uri(image)}" alt="{told}"><span>{html.escape(caption)}</span></li>'
        )
    facts = [f"{answer.n_embeddings} embedding{'s' * (answer.n_embeddings != 1)} an image"]
    if answer.average_precision is not None:
        facts.append(f"<b>AP@50 {100 * answer.average_precision:.1f}</b>")
    facts.append(f"text {answer.result.encode_ms:.0f} ms, search {answer.result.search_ms:.1f} ms")
    return f"<section><h3>{_title(answer)}</h3><p>{' · '.join(facts)}</p><ol>{''.join(items)}</ol></section>"


def _title(answer: MethodAnswer) -> str:
    """The name of the method's index without the images', which are the same for all: `FOR 8`."""
    return html.escape(answer.name.rpartition(": ")[2])


def _agreement(comparison: SideBySide) -> str:
    """How many of the best images two methods share, as a table; nothing for one method."""
    if len(comparison.answers) < 2:
        return ""
    titles = [_title(answer) for answer in comparison.answers]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    rows = "".join(
        f'<tr><th scope="row">{title}</th>' + "".join(f"<td>{100 * share:.0f}%</td>" for share in row) + "</tr>"
        for title, row in zip(titles, comparison.overlap, strict=True)
    )
    return (
        f"<h3>Agreement</h3><p>Of the best {comparison.k} images of one method, how many another finds as well.</p>"
        f'<div class="wide"><table><tr><td></td>{head}</tr>{rows}</table></div>'
    )


def _data_uri(image: Image.Image) -> str:
    """A picture inside the page itself: nothing is written for a file server to serve."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
