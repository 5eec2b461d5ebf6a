"""What each command of `python -m for_search` does with its arguments: calls the package, prints the outcome.

Imports stay within the functions, so that --help and a slip in the arguments don't wait for torch.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from for_model.cli import print_json
from for_model.data.registry import datasets_help
from for_model.errors import StoreError, UsageError

if TYPE_CHECKING:
    from for_model.backbones.protocol import ImageTextBackbone
    from for_model.methods.protocol import Method
    from for_search.index.index import SearchIndex
    from for_search.index.sketches.sketch_encoder import SketchEncoder
    from for_search.query.searcher import Query, Searcher


def add_method_options(parser: argparse.ArgumentParser, root_type: Callable[[str], object] = Path) -> None:
    """The options that choose data and model, the same for every command that embeds."""
    parser.add_argument(
        "--dataset",
        required=True,
        help=f"one of {datasets_help()}",
    )
    url = "" if root_type is Path else "; of --dataset folder also a URL such as s3://BUCKET/photos"
    parser.add_argument(
        "--root", type=root_type, help=f"the dataset's folder; for coco, the one with annotations/{url}"
    )
    parser.add_argument("--split", help="val2017, train2017, ... (default: the dataset's validation split)")
    parser.add_argument(
        "--backbone",
        help="RN-mini (built in), photo-lite, RN50, ViT-B-32, ...; of coca one of open_clip's CoCas, of owlvit, owlv2 "
        "and blip2 a repository of the model hub (default: a head's or dual encoder's own, else RN-mini)",
    )
    parser.add_argument(
        "--weights",
        help="openai, random, another pretrained tag, or a file; for owlvit, owlv2 and blip2 a folder (default: the "
        "backbone's)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="pixels a side, a multiple of 32, or a ViT's patch (default: own)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--cluster-engine",
        choices=("batched", "reference"),
        default="batched",
        help="K-means of cluster-clip: all images of a batch at once, or image by image on the CPU as published",
    )


def method_of(arguments: argparse.Namespace, name: str, loaded: "ImageTextBackbone | None" = None) -> "Method":
    """The method of a name, with the options that every command that embeds has.

    loaded: what its head is put on, see `build_method`.
    """
    from for_model.methods.build import build_method

    return build_method(
        name,
        arguments.backbone,
        arguments.weights,
        image_size=arguments.image_size,
        device=arguments.device,
        cluster_engine=arguments.cluster_engine,
        loaded=loaded,
    )


def build_with_sketches(
    path: Path, build: "Callable[[], SearchIndex]", asked: "SketchEncoder | bool" = False
) -> "SearchIndex":
    """Build an index, and the sketches that it is asked for, or had.

    path: the index's folder, where its sketches' encoder is found before segments give way to others.
    asked: True for sketches by the encoder that there is, else of the principal axes.
    """
    from for_search.index.sketches.sketch_files import kept_encoder, make_sketches

    before = kept_encoder(path)
    index = build()
    encoder = before if isinstance(asked, bool) else asked
    if encoder is not None and isinstance(asked, bool) and encoder.text_space != index.info.text_space:
        encoder = None  # of what the index held before
    if asked or encoder is not None:
        made = make_sketches(index, encoder)
        print(f"{path}: sketches of {made.n_bytes:,} bytes, {made.encoder.made_by}")
    return index


def run_index(arguments: argparse.Namespace) -> None:
    from for_search.index.index_files import build_index
    from for_search.library.vocabulary_sample import texts_for
    from for_search.store.mirror import local_store

    store = local_store(arguments.store)
    asked: SketchEncoder | bool = arguments.answers is not None
    if arguments.answers:
        from for_search.index.sketches.sketch_encoder import read_sketch_encoder

        asked = read_sketch_encoder(Path(arguments.answers))
    index = build_with_sketches(
        arguments.out,
        lambda: build_index(
            store,
            arguments.out,
            arguments.engine,
            rebuild=arguments.rebuild,
            recall=arguments.recall,
            texts=lambda: texts_for(store),
            url=arguments.url,
            quantised=arguments.quantise,
        ),
        asked,
    )
    print(
        f"{arguments.out}: {len(index.images)} images, {index.info.n_embeddings} embeddings each, "
        f"in {len(index.segments)} segment{'' if len(index.segments) == 1 else 's'}, {index.recall or 'exact'}"
    )
    if index.recall is None and index.kind == "compact":
        print("so few images are scanned as fast")
    elif index.recall is not None and index.recall.mean < index.recall.asked:
        print(f"that is less than the {index.recall.asked:g} asked for: search with --exact where it matters")


def run_sketch_encoder(arguments: argparse.Namespace) -> None:
    from for_search.index.sketches.training import SketchTraining
    from for_search.library.sketch_texts import dataset_of, known_texts, train_on_index

    searcher = _searcher(arguments)
    known = known_texts(arguments.texts, dataset_of(searcher.index, arguments.root))
    settings = SketchTraining(steps=arguments.steps, seed=arguments.seed)
    encoder = train_on_index(searcher.index, searcher.method, known, f"trained on {arguments.texts}", settings)
    encoder.write(arguments.out)
    print(f"{arguments.out}: {encoder.n_numbers} numbers of 8 bits, {encoder.sha256[:12]}")


def run_verify(arguments: argparse.Namespace) -> None:
    from for_search.index.sketches.sketch_files import check_sketches
    from for_search.index.verify import verify
    from for_search.store.mirror import local_store

    damaged = 0
    place = local_store(arguments.path)
    for file, error in itertools.chain(verify(place), check_sketches(place)):
        print(f"{file}: {error or 'sound'}", flush=True)
        damaged += error is not None
    if damaged:
        raise StoreError(f"{arguments.path}: {damaged} of its files not as written")


def add_searcher_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how an index is searched, the same for every command that does; see `_searcher`."""
    parser.add_argument("--weights", help="the weights' file, for an index that was made from one")
    parser.add_argument("--image-root", type=Path, help="where the images are now, if they have moved")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")


def _searcher(arguments: argparse.Namespace, index: "SearchIndex | None" = None) -> "Searcher":
    """The searcher of the index that a command was given.

    index: that one, if it is open already.
    """
    from for_search.index.index_files import open_index
    from for_search.query.searcher import searcher_of

    return searcher_of(
        index or open_index(Path(arguments.index)),
        arguments.device,
        weights=arguments.weights,
        image_root=arguments.image_root,
    )


def run_search(arguments: argparse.Namespace) -> None:
    several = (arguments.all_of, arguments.any_of, arguments.none_of)
    if arguments.auth is not None and arguments.server is None:
        raise UsageError("--auth is for a page: name it with --server")
    if any(several) and (arguments.like is not None or arguments.text):
        raise UsageError("--all, --any and --none stand in place of a text and of --like: give either")
    if not any(several) and arguments.like is None and not arguments.text:
        raise UsageError("nothing to search for: give a text, --like an image, or --all, --any and --none")
    if arguments.server is not None:
        _print_found(_ask_server(arguments, several), arguments.json)
        return
    from for_search.index.index_files import open_index
    from for_search.query.combination import Combination, find_combination
    from for_search.refine.concepts import concept_name, find_by_concept, learnt_thing, read_concept, refine_by_concept

    combination = Combination(*several) if any(several) else None
    name = concept_name(arguments.text)
    if name is not None and arguments.like is not None:
        raise UsageError("a concept can't be mixed with an image: leave --like out")
    concept = None if name is None else read_concept(arguments.concepts, name)
    things = {} if combination is None else {text: concept_name(text) for _, text in combination.things}
    concepts = {text: read_concept(arguments.concepts, each) for text, each in things.items() if each is not None}
    index = open_index(Path(arguments.index))
    allowed = index.where(arguments.where)  # before the network is loaded, which takes seconds
    searcher = _searcher(arguments, index)
    if combination is not None:
        learnt = {text: learnt_thing(refine_by_concept(searcher, each), text) for text, each in concepts.items()}
        found = find_combination(searcher, combination, arguments.k, allowed, learnt)
        _print_found(found.to_json(), arguments.json)
        return
    if concept is None:
        query = _query(searcher, arguments)
        result = searcher.judged(query, searcher.find(query, arguments.k, allowed, exact=arguments.exact))
    else:
        result = find_by_concept(searcher, concept, arguments.k, allowed=allowed, exact=arguments.exact)
    _print_found(result.to_json(), arguments.json)
    if searcher.index.recall is not None and not arguments.exact and not arguments.json:
        print(f"{searcher.index.recall}; --exact looks at every embedding")


def _ask_server(arguments: argparse.Namespace, several: Sequence[Sequence[str]]) -> dict[str, Any]:
    from for_search.running_page import RemotePage, search_remotely

    own = {"--weights": arguments.weights, "--image-root": arguments.image_root, "--device": arguments.device}
    given = [name for name, value in {**own, "--exact": arguments.exact or None}.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: the page of --server decides that itself, leave it out")
    page = RemotePage(arguments.server, arguments.auth or os.environ.get("FOR_AUTH"))
    return search_remotely(
        page, arguments.index, arguments.text, arguments.k, arguments.where, several, arguments.like, arguments.weight
    )


def _query(searcher: "Searcher", arguments: argparse.Namespace) -> "Query":
    """The text, the image of --like, or the one moved towards the other."""
    if arguments.like is None:
        return searcher.text_query(arguments.text)
    path = Path(arguments.like)
    if path.is_file():
        from for_model.data.images import load_image

        picture = load_image(path, target=2 * searcher.index.info.image_size)
        image = searcher.image_query(picture, f"like {path.name}")
    else:
        image = searcher.like_query(arguments.like)
    return searcher.mixed_query(image, arguments.text, arguments.weight) if arguments.text else image


def _print_found(answer: dict[str, Any], as_json: bool) -> None:
    from for_search.query.hit_lines import hit_lines

    if as_json:
        print_json(answer, indent=1)
    else:
        print(hit_lines(answer))


def run_concept_create(arguments: argparse.Namespace) -> None:
    from for_search.index.index_files import open_index
    from for_search.refine.concepts import make_concept, read_text_of, write_concept
    from for_search.refine.feedback import marked_embeddings, read_marks

    index = open_index(arguments.index)
    feedback = read_marks(arguments.marks)
    text = read_text_of(arguments.marks) if arguments.text is None else arguments.text
    concept = make_concept(arguments.name, index, feedback, text, arguments.refiner, arguments.threshold)
    gone = len(marked_embeddings(index, feedback).gone)
    path = write_concept(arguments.concepts, concept, arguments.replace)
    note = f"; {gone} marks are of images or parts that {arguments.index} doesn't have, they are kept" if gone else ""
    print(f"{path}: {feedback.n_right} right, {feedback.n_wrong} wrong{note}")


def run_concept_list(arguments: argparse.Namespace) -> None:
    from for_search.refine.concepts import concept_names, describe_concept

    names = concept_names(arguments.concepts)
    lines = [describe_concept(arguments.concepts, name) for name in names]
    print("\n".join(lines) or f"no concepts in {arguments.concepts}")


def run_concept_show(arguments: argparse.Namespace) -> None:
    from for_search.refine.concepts import read_concept

    concept = read_concept(arguments.concepts, arguments.name)
    print_json(concept.to_json(), indent=1)
    if arguments.index is not None:
        from for_search.query.hit_lines import printable
        from for_search.refine.answer import whole_answer
        from for_search.refine.concepts import refine_by_concept
        from for_search.refine.export import answer_rows

        searcher = _searcher(arguments)
        learnt = refine_by_concept(searcher, concept)
        gone = len(learnt.examples.gone)
        answer = whole_answer(learnt, concept.threshold, arguments.exact)
        print(answer.in_words() + (f"; {gone} marked images are gone" if gone else ""))
        right = frozenset(mark.image for mark in learnt.examples.right_marks)
        rows = answer_rows(searcher.index, answer, right, arguments.first, arguments.count)
        for number, row in enumerate(rows, start=arguments.first + 1):
            note = "marked" if row.marked else f"{row.probability:.3f}"
            print(f"{number:6d}  {note:>7}  {row.image.id}  {printable(row.image.path)}")


def run_concept_export(arguments: argparse.Namespace) -> None:
    from for_search.refine.answer import whole_answer
    from for_search.refine.concepts import read_concept, refine_by_concept
    from for_search.refine.export import check_place, concept_labels, export_answer, write_labels

    also = [name for names in arguments.also for name in names]
    if also and arguments.form != "coco":
        raise UsageError(f"--also adds categories to --form coco, got --form {arguments.form}: export one by one")
    check_place(arguments.out, arguments.form)
    concepts = [read_concept(arguments.concepts, name) for name in (arguments.name, *also)]
    searcher = _searcher(arguments)
    learnt = [refine_by_concept(searcher, concept) for concept in concepts]
    answers = [
        whole_answer(each, concept.threshold, arguments.exact) for each, concept in zip(learnt, concepts, strict=True)
    ]
    names = [concept.name for concept in concepts]
    if also:
        found = zip(learnt, answers, names, strict=True)
        write_labels(searcher, [concept_labels(each, answer, name) for each, answer, name in found], arguments.out)
    else:
        export_answer(searcher, answers[0], learnt[0], names[0], arguments.out, arguments.form)
    for name, answer in zip(names, answers, strict=True):
        print(f"{arguments.out}: {name}: {answer.in_words()}" if also else f"{arguments.out}: {answer.in_words()}")


def run_concept_delete(arguments: argparse.Namespace) -> None:
    from for_search.refine.concepts import delete_concept

    delete_concept(arguments.concepts, arguments.name)
    print(f"deleted concept {arguments.name!r}")
