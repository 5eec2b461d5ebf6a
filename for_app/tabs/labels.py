"""The Pseudo-labels tab: an image in, the names that Cluster-CLIP sees in it out, and where it sees them."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from for_app.guard import page_event
from for_app.uploads import DECODED_PX, uploaded_image
from for_app.views.labels import labels_html, regions_html
from for_app.views.pictures import pictures_of
from for_app.views.regions import draw_regions
from for_app.views.templates import render
from for_model.methods.registry import DEFAULT_BACKBONE
from for_search.library.built_in_index import DEFAULT_DATASET
from for_search.library.label_service import (
    DEFAULT_THRESHOLD,
    DEFAULT_THRESHOLDS,
    default_vocabulary,
    label_image,
    sample_images,
)
from for_search.library.library import Library
from for_search.query.image_labels import MAX_NAME_CHARACTERS, MAX_NAMES, OWN, VOCABULARIES

N_SAMPLES = 12
_LOOK = '() => document.querySelector("#label-drawing").scrollIntoView({ block: "nearest", behavior: "smooth" })'
_CHOOSE_ONE = "<p>Choose an image, or drop one: its names are looked for then.</p>"
_CHOICES = (
    ("the dataset's own names", "dataset"),
    ("ImageNet-21K", "imagenet21k"),
    ("MiniScenes' nouns", "miniscenes"),
    ("names of mine", OWN),
)
assert {choice for _, choice in _CHOICES} == set(VOCABULARIES)


@dataclass(frozen=True)
class _Parts:
    """The tab's components that events read or write.

    upload: what the page's script writes when an image is dropped, pasted or chosen: `folder/name` of the file.
    picked: the image, an id of the index or an upload.
    shown: the ids of the images to choose from.
    of_index: the name of the index that they are of.
    """

    upload: gr.Textbox
    samples: gr.Gallery
    others: gr.Button
    vocabulary: gr.Radio
    own_box: gr.Column
    own: gr.Textbox
    use: gr.Button
    threshold: gr.Slider
    drawing: gr.HTML
    labels: gr.HTML
    picked: gr.State
    shown: gr.State
    of_index: gr.State


def labels_tab(library: Library, current: gr.Textbox, opened: gr.Textbox) -> None:
    """Build the tab.

    current: holds the name of the index whose backbone and images are used.
    opened: holds the name of the tab that is shown.
    """
    gr.HTML(
        "<p>What FOR learns from where nobody has labelled anything: the names that Cluster-CLIP sees in an image, "
        "each with its probability and the part of the image that shows it. It knows only the names to choose from: "
        "whatever an image shows, each part of it gets the best of them, right or not.</p>",
        elem_classes="hint",
    )
    with gr.Row(elem_id="label-row"):
        with gr.Column(scale=2, min_width=300):
            gr.HTML(render("choose_image"), apply_default_css=False)
            upload = gr.Textbox("", elem_id="label-upload", label="The upload", visible="hidden", container=False)
            samples = gr.Gallery(
                label="Images of this index",
                show_label=False,
                columns=4,
                height="auto",
                format="jpeg",
                object_fit="cover",
                allow_preview=False,
                buttons=[],
                interactive=False,
                elem_id="label-samples",
            )
            others = gr.Button("Other images", size="sm", elem_id="label-others")
            vocabulary = gr.Radio(
                list(_CHOICES), value="dataset", label="Names to choose from", elem_id="label-vocabulary"
            )
            with gr.Column(visible=False) as own_box:
                own = gr.Textbox(
                    label="Your names",
                    info=f"2 to {MAX_NAMES:,}, one a line or with commas between",
                    lines=3,
                    max_length=MAX_NAMES * (MAX_NAME_CHARACTERS + 2),
                    elem_id="label-own",
                )
                use = gr.Button("Label with these", size="sm", elem_id="label-use")
            threshold = gr.Slider(
                0, 1, DEFAULT_THRESHOLD, step=0.01, label="Least probability", elem_id="label-threshold"
            )
        with gr.Column(scale=3, min_width=300):
            drawing = gr.HTML(elem_id="label-drawing", apply_default_css=False)
            labels = gr.HTML(elem_id="label-list")
    parts = _Parts(
        upload, samples, others, vocabulary, own_box, own, use, threshold, drawing, labels,
        gr.State(None), gr.State([]), gr.State(""),
    )  # fmt: skip
    _connect(library, current, opened, parts)


def _connect(library: Library, current: gr.Textbox, opened: gr.Textbox, p: _Parts) -> None:
    """Connect the tab's events with what labels images."""

    def label(
        name: str, picked: Any, vocabulary: str, own: str, least: float, progress: gr.Progress = gr.Progress()  # noqa: B008
    ) -> tuple[Any, Any]:  # fmt: skip
        if vocabulary == OWN and not (own or "").strip():
            return gr.skip(), gr.skip()  # they are about to be typed
        if picked is None:
            return gr.skip(), gr.skip()  # the names are chosen first
        image = uploaded_image(picked, target=DECODED_PX) if isinstance(picked, dict) else picked

        def report(done: int, total: int) -> None:
            progress((done, total), desc="embedding the names, once", unit="names")

        shown, found = label_image(library, name, image, vocabulary, own, least, report)
        index_of = library.searcher(name).index
        drawn = index_of.dataset == DEFAULT_DATASET and not isinstance(picked, dict)
        strange = index_of.info.backbone == DEFAULT_BACKBONE and not drawn
        listed = labels_html(found, DEFAULT_BACKBONE if strange else None)
        return regions_html(draw_regions(shown, found), found), listed

    def open_tab(name: str, tab: str, before: str) -> tuple[Any, ...]:
        if tab != "labels" or name == before:
            return (gr.skip(),) * len(filled)
        pictures, ids = _samples(library, name, seed=0)
        vocabulary = default_vocabulary(library, name)
        own_box = gr.Column(visible=vocabulary == OWN)
        return pictures, ids, None, "", vocabulary, own_box, _slider(vocabulary), "", _CHOOSE_ONE, name

    def other_images(name: str) -> tuple[Any, ...]:
        return _samples(library, name, seed=time.time_ns())

    def choose(shown: list, chosen: gr.SelectData) -> tuple[Any, ...]:
        return shown[chosen.index], "", "", ""

    def choose_upload(upload: str) -> tuple[Any, ...]:
        if not upload:
            return (gr.skip(),) * 3
        return {"path": str(Path(get_upload_folder()) / upload)}, "", ""

    def change_vocabulary(vocabulary: str) -> tuple[Any, Any]:
        return gr.Column(visible=vocabulary == OWN), _slider(vocabulary)

    private: dict[str, Any] = {"api_visibility": "private"}
    quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
    # Nothing is labelled before an image is chosen: the names would be embedded for it, which may take minutes.
    filled = [
        *(p.samples, p.shown, p.picked, p.upload, p.vocabulary, p.own_box, p.threshold, p.drawing, p.labels, p.of_index)
    ]
    for event in (opened.change, current.change):
        event(page_event(library, open_tab), [current, opened, p.of_index], filled, **quiet)
    asks = [
        p.samples.select(page_event(library, choose), p.shown, [p.picked, p.drawing, p.labels, p.upload], **quiet),
        p.upload.change(page_event(library, choose_upload), p.upload, [p.picked, p.drawing, p.labels], **quiet),
        p.vocabulary.input(page_event(library, change_vocabulary), p.vocabulary, [p.own_box, p.threshold], **quiet),
    ]
    labelling: dict[str, Any] = {
        "fn": page_event(library, label),
        "inputs": [current, p.picked, p.vocabulary, p.own, p.threshold],
        "outputs": [p.drawing, p.labels],
        "show_progress_on": p.labels,
        **private,
    }
    for asked in asks:
        asked.success(**labelling).success(None, None, None, js=_LOOK, **quiet)
    gr.on([p.threshold.input, p.own.submit, p.use.click], trigger_mode="always_last", **labelling)
    p.others.click(page_event(library, other_images), current, [p.samples, p.shown], **quiet)


def _samples(library: Library, name: str, seed: int) -> tuple[list[tuple[Image.Image, str]], list[int | str]]:
    """Pictures to choose from with their files' names, and their ids."""
    searcher = library.searcher(name)
    records = sample_images(searcher, N_SAMPLES, seed)
    pictures = [shown for shown, _ in pictures_of(searcher, records)]
    named = [(shown, Path(record.path).name) for shown, record in zip(pictures, records, strict=True)]
    return named, [record.id for record in records]


def _slider(vocabulary: str) -> gr.Slider:
    """Among ImageNet-21K's many names all probabilities are small."""
    start = DEFAULT_THRESHOLDS.get(vocabulary, DEFAULT_THRESHOLD)
    fine = start < 0.01
    return gr.Slider(maximum=0.02 if fine else 1, step=0.0001 if fine else 0.01, value=start)
