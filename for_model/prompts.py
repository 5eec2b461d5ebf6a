"""The sentences that names are put into before they are encoded, and which queries are names."""

import re
from collections.abc import Sequence

from for_model.errors import UsageError

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
    """A name in each of the prompts.

    name: put in as it is; braces in it have no meaning.
    prompts: templates, each with one `{}`; None for PROMPTS.
    """
    return [name.join(prompt.split("{}")) for prompt in (PROMPTS if prompts is None else prompts)]


def prompted_name(query: str) -> str | None:
    """The name to put into the prompts for a free-text query, or None for a query to encode as it stands.

    A leading article is dropped. What is left is a name if it has at most three words and doesn't end like a sentence
    (. ! ?).
    """
    name = _ARTICLE.sub("", query.strip())
    if len(name.split()) > _MAX_PROMPTED_WORDS or name.endswith((".", "!", "?")):
        return None
    return name


def check_texts(texts: Sequence[str], what: str) -> None:
    """Raise UsageError for an empty text among some.

    what: the texts are, for the message.
    """
    if isinstance(texts, str):
        raise UsageError(f"got one string, expected a sequence of them: [{texts!r}]")
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{what} {position + 1} of {len(texts)} is empty ({text!r}); expected a word or more")
