"""A script that runs in the page before Gradio's own, which `gr.Blocks` has no place for."""

from gradio.routes import templates
from jinja2 import ChoiceLoader, DictLoader

_PAGES = ("frontend/index.html", "frontend/share.html")  # Gradio's, the second with a share link


def add_first_script(script: str) -> None:
    """Put the script into the pages that Gradio serves from now on. Calling it again changes nothing.

    script: HTML, with its tags.
    """
    environment = templates.env
    original = environment.loader
    if original is None or isinstance(original, ChoiceLoader):
        return
    sources = {page: original.get_source(environment, page)[0] for page in _PAGES}
    head = "<head>"
    changed = {page: source.replace(head, head + script, 1) for page, source in sources.items()}
    environment.loader = ChoiceLoader([DictLoader(changed), original])
