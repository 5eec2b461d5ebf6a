"""The Index tab: what is loaded, and, where that is allowed, another folder indexed while others search."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from for_app.guard import page_event, without_private_paths
from for_app.views.presentation import about_html, build_html
from for_model.backbones.photo_packages import missing_packages
from for_model.errors import UsageError
from for_model.methods.registry import built_in_methods
from for_search.library.background_builds import Builder, BuildState
from for_search.library.folder_index import PHOTO_METHOD
from for_search.library.library import Library

# What was made is what is searched next, by whoever asked for it; others find it among the indexes.
_NOTE = "() => { window.FOR.builds = true; }"
_CHOOSE = "(name) => { if (name) window.FOR.listIndexes(window.FOR.builds ? name : undefined); }"


def index_tab(library: Library, current: gr.Textbox, opened: gr.Textbox, app: gr.Blocks, allow_build: bool) -> None:
    """Build the tab.

    current: holds the name of the index.
    opened: holds the name of the tab that is shown.
    app: the page, for what happens when it opens.
    allow_build: let visitors index folders of the machine that serves the page.
    """
    gr.HTML("<p>What is being searched. The choice at the top of the page changes it.</p>", elem_classes="hint")
    about = gr.HTML(elem_id="about")

    def describe(name: str, tab: str) -> Any:
        return about_html(library.searcher(name).index) if tab == "index" else gr.skip()

    for event in (opened.change, current.change):
        event(page_event(library, describe), [current, opened], about, api_visibility="private", show_progress="hidden")
    if allow_build:
        _build_form(library, app)
    else:
        gr.HTML(
            "<p>Folders can't be indexed from here: this page can be reached from other machines, and a build reads "
            "whichever folder it is given. Start the app on 127.0.0.1 without --share, or with --allow-build.</p>",
            elem_classes="hint",
        )


def _build_form(library: Library, app: gr.Blocks) -> None:
    builder = Builder(library)
    gr.HTML(
        "<h3>Index a folder</h3><p>Everybody can search on meanwhile. What is stopped goes on where it was.</p>",
        elem_classes="hint",
    )
    with gr.Row():
        folder = gr.Textbox(label="Folder of images, on the machine that serves this page", scale=3, elem_id="folder")
        choices = list(built_in_methods())
        method = gr.Dropdown(choices, value=PHOTO_METHOD, label="Method", min_width=180, elem_id="build-method")
        own = library.searcher(library.default).index.info.backbone
        backbones = list(dict.fromkeys([own, *([] if missing_packages() else ["photo-lite"]), "RN50"]))
        backbone = gr.Dropdown(
            backbones,
            value="photo-lite" if "photo-lite" in backbones else own,
            label="Backbone",
            allow_custom_value=True,
            min_width=140,
            elem_id="backbone",
        )
    with gr.Row():
        start = gr.Button("Build", variant="primary", scale=0, min_width=110, elem_id="build")
        stop = gr.Button("Stop", interactive=False, scale=0, min_width=110, elem_id="stop")
    shown = gr.HTML(elem_id="built")
    built = gr.Textbox("", elem_id="built-name", label="The index that was made", visible="hidden", container=False)
    timer = gr.Timer(0.5, active=False)

    def watch() -> tuple[Any, ...]:
        return shown_of(builder.state)

    def shown_of(state: BuildState) -> tuple[Any, ...]:
        return (
            build_html(replace(state, message=without_private_paths(library, state.message))),
            gr.Timer(active=state.running),
            gr.Button(interactive=not state.running),
            gr.Button(interactive=state.running),
        )

    def look() -> tuple[Any, ...]:
        state = builder.state  # once: it changes meanwhile
        return *shown_of(state), gr.skip() if state.name is None else state.name

    def begin(path: str, wanted: str, model: str) -> tuple[Any, ...]:
        if not (path or "").strip():
            raise UsageError("Name a folder of images")
        builder.start(Path(path.strip()), wanted, model)
        return *shown_of(builder.state), ""

    def end() -> tuple[Any, ...]:
        builder.stop()
        return look()

    outputs = [shown, timer, start, stop, built]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on([start.click, folder.submit], None, None, None, js=_NOTE, **quiet)
    gr.on([start.click, folder.submit], page_event(library, begin), [folder, method, backbone], outputs, **quiet)
    stop.click(page_event(library, end), None, outputs, **quiet)
    timer.tick(page_event(library, look), None, outputs, **quiet)
    app.load(page_event(library, watch), None, outputs[:-1], **quiet)  # a build may be running that another began
    built.change(None, built, None, js=_CHOOSE)
