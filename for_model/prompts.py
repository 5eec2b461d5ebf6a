"""The sentences that names are put into before they are encoded, and which queries are names."""

import re
from collections.abc import Sequence

# OpenAI's seven, from the prompt-engineering notebook of CLIP; "a origami" is theirs.
PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

_MAX_PROMPTED_WORDS = 3
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)", re.IGNORECASE)


def prompts_of(encoder: object) -> tuple[str, ...]:
    """The templates that names are put into for an encoder: its own `prompts`, else the PROMPTS."""
    return getattr(encoder, "prompts", PROMPTS)


def fill_prompts(name: str, prompts: Sequence[str] | None = None) -> list[str]:
    """The name in each of the prompts, by default the PROMPTS. Braces in the name mean nothing."""
    return [name.join(prompt.split("{}")) for prompt in (PROMPTS if prompts is None else prompts)]


def prompted_name(query: str) -> str | None:
    """The name to put into the PROMPTS for a free-text query, or None for a query to encode as it stands.

    Without a leading article, a query of at most three words that doesn't end like a sentence (. ! ?) is a name.
    """
    name = _ARTICLE.sub("", query.strip())
    if len(name.split()) > _MAX_PROMPTED_WORDS or name.endswith((".", "!", "?")):
        return None
    return name
