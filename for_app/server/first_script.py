"""A script that runs in the page before Gradio's own, which `gr.Blocks` has no place for."""

from gradio.routes import templates
from jinja2 import ChoiceLoader, DictLoader

from for_app.views.templates import render

_PAGES = ("frontend/index.html", "frontend/share.html")  # Gradio's, the second with a share link


def add_first_script() -> None:
    """Put the script into the pages that Gradio serves from now on. Calling it again changes nothing."""
    environment = templates.env
    original = environment.loader
    if original is None or isinstance(original, ChoiceLoader):
        return
    sources = {page: original.get_source(environment, page)[0] for page in _PAGES}
    head = "<head>"
    changed = {page: source.replace(head, head + render("first_script"), 1) for page, source in sources.items()}
    environment.loader = ChoiceLoader([DictLoader(changed), original])
