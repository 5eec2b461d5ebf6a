"""Answers as lines for a terminal, made from the JSON that every answer has, wherever it comes from."""

from collections.abc import Mapping, Sequence
from typing import Any


def hit_lines(answer: Mapping[str, Any]) -> str:
    """The hits, a line each: rank, probability, score and number of the embedding that matched, path.

    Of several things, in place of score and number, how probable each is. Good matches come first, under a line that
    counts them, and a line parts the others from them; without probabilities there are neither. Characters that a
    terminal would act on, or can't show, are escaped. No hits give one line that says so.

    answer: of `SearchResult.to_json` or `CombinedResult.to_json`; where hits have no path, their ids stand for it.
    """
    hits = answer["hits"]
    if not hits:
        return "no images"
    rank_width = len(str(len(hits)))
    embedding_width = max(len(str(hit.get("embedding", ""))) for hit in hits)
    lines = []
    for rank, hit in enumerate(hits, start=1):
        probability = f"{hit['probability']:>4.0%}  " if "probability" in hit else ""
        if "things" in hit:
            things = ", ".join(f"{printable(each['text'])} {each['probability']:.0%}" for each in hit["things"])
            matched = f"({things})"
        else:
            matched = f"{hit['score']:.4f}  {hit['embedding']:>{embedding_width}}"
        path = printable(str(hit.get("path", hit["id"])))
        lines.append(f"{rank:>{rank_width}}  {probability}{matched}  {path}")
    return "\n".join(_parted(lines, answer.get("n_good")))


def printable(text: str) -> str:
    """A text whose characters that a terminal would act on, or can't show, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _parted(lines: Sequence[str], n_good: int | None) -> list[str]:
    """Lines of hits, best first, with what says how many of them are good matches; as they are where None knows."""
    if n_good is None:
        return list(lines)
    noun = "match" if n_good == 1 else "matches"
    below = ["----  less sure"] if n_good < len(lines) else []
    return [f"{n_good or 'no'} good {noun}", *lines[:n_good], *below, *lines[n_good:]]
