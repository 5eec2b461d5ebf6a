"""The API endpoints: `for_search.api` under names that `gradio_client` calls. See docs/api.md."""

import gradio as gr

from for_app.guard import api_endpoint
from for_app.uploads import DECODED_PX, uploaded_image
from for_model.errors import UsageError
from for_search import api
from for_search.library.library import Library


def add_endpoints(library: Library) -> None:
    """Add an endpoint for each function of `for_search.api` to the page that is being built."""

    def search(
        query: str = "",
        k: int = 12,
        index: str = "",
        all_of: list[str] | None = None,
        any_of: list[str] | None = None,
        none_of: list[str] | None = None,
        where: str = "",
    ) -> dict:
        """The images that match a text, or hold several things at once, best first.

        Of each its rank, id, score, probability, whether it is a good match, and the number of the embedding that
        matched.

        all_of, any_of, none_of: what must be in an image, what of which one must be, and what must not.
        where: a condition over the images' columns, which all that are found meet.
        """
        return api.search(library, query, k, index, all_of or (), any_of or (), none_of or (), where)

    def search_image(
        image: gr.FileData, k: int = 12, index: str = "", text: str = "", weight: float = 0.5, where: str = ""
    ) -> dict:
        """The images that show most of what an image shows, best first.

        image: an uploaded file.
        text: what they shall be besides; its weight is 0 to 1.
        """
        upload = uploaded_image(image, target=DECODED_PX)
        return api.search_image(library, upload, k, index, text=text, weight=weight, where=where)

    def search_like(
        image_id: str,
        k: int = 12,
        index: str = "",
        embedding: int = -1,
        text: str = "",
        weight: float = 0.5,
        where: str = "",
    ) -> dict:
        """The images that show most of what an image of the index shows, or one of its embeddings (-1: all of them).

        text: what they shall be besides; its weight is 0 to 1.
        """
        part = None if embedding == -1 else embedding
        return api.search_image(library, image_id, k, index, part, text, weight, where)

    def compare(query: str, k: int = 12, index: str = "") -> dict:
        """A text through every method that has an index of the same images, their AP@50 where labels tell, overlaps."""
        return api.compare(library, query, k, index)

    def evidence(query: str, image_id: str, index: str = "") -> dict:
        """Where in an image the embedding comes from that matches a text best: shares of the cells, 0 to 1."""
        return api.evidence(library, query, image_id, index)

    def parts(image_id: str, index: str = "") -> dict:
        """Which embedding stands for which place of an image: a mark may name it."""
        return api.parts(library, image_id, index)

    def pseudo_label(
        image: dict | None = None,
        image_id: str = "",
        index: str = "",
        vocabulary: str = "",
        names: list[str] | None = None,
        threshold: float | None = None,
    ) -> dict:
        """The names that Cluster-CLIP sees in an image: name, probability, cluster, and whether it is right.

        image: an uploaded file; None where `image_id` names the image.
        image_id: of an image of the index; empty for an uploaded one.
        vocabulary: `dataset`, `imagenet21k`, `miniscenes`, or `own`, which takes `names`.
        threshold: the least probability.
        """
        if (image is None) != bool(image_id):
            raise UsageError("give either an image or the image_id of one of the index")
        what = image_id if image is None else uploaded_image(image, target=DECODED_PX)
        return api.pseudo_label(library, what, index, vocabulary, names or [], threshold)

    def refine(
        query: str,
        marks: list[dict],
        k: int = 12,
        index: str = "",
        refiner: str = "",
    ) -> dict:
        """The best images that aren't marked, by a text and marks on earlier results, each with its probability.

        marks: {"image": id, "right": true or false, "embedding": number or null} each; none of them is kept.
        refiner: what learns from them: `similarity`, if left out, `linear`, `rocchio`, `marks-only` or `branches`.
        """
        return api.refine(library, query, marks, k, index, refiner)

    def most_telling(query: str, marks: list[dict], count: int = 3, index: str = "", refiner: str = "") -> dict:
        """The images whose marks would tell most of what is meant by a text and marks, to be marked next."""
        return api.most_telling(library, query, marks, count, index, refiner)

    def answer_all(
        query: str,
        marks: list[dict],
        index: str = "",
        refiner: str = "",
        threshold: float = 0.5,
        first: int = 0,
        count: int = api.MAX_K,
    ) -> dict:
        """All images of an index that a text and marks mean, a page of them, with the answer's estimated precision.

        threshold: the least probability.
        first: how many images earlier pages held.
        count: how many are listed.
        """
        return api.answer_all(library, query, marks, index, refiner, threshold, first, count)

    def concepts() -> dict:
        """The kept concepts, which `search` takes as concept:NAME."""
        return api.concepts(library)

    def stats(index: str = "") -> dict:
        """What an index holds: images, method, bytes, skipped images with reasons; and the names of all indexes."""
        return api.stats(library, index)

    functions = (
        *(search, search_image, search_like, compare, evidence, parts, pseudo_label),
        *(refine, most_telling, answer_all, concepts, stats),
    )
    for function in functions:
        gr.api(api_endpoint(library, function), api_name=function.__name__)
