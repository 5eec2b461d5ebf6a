"""Texts that may name a concept of the library, `concept:NAME`: what they stand for, wherever a text is."""

from pathlib import Path

from for_model.errors import UsageError
from for_search.library.library import Library
from for_search.query.combination import Combination, Thing
from for_search.query.searcher import Searcher, SearchResult, clean_query
from for_search.query.side_by_side import SideBySide, ask_side_by_side
from for_search.refine.answer import Refinement, refine_index
from for_search.refine.concepts import (
    KeptConcept,
    concept_name,
    find_by_concept,
    learnt_thing,
    make_concept,
    read_concept,
    refine_by_concept,
    write_concept,
)
from for_search.refine.feedback import NO_MARKS, Feedback
from for_search.refine.learners.refiners import DEFAULT_REFINER


def named_concept(library: Library, text: str) -> KeptConcept | None:
    """The concept that a text names; None for a text that names none.

    Raises UsageError where the library has no concept of the name, and DataError for a damaged one.
    """
    name = concept_name(text)
    return None if name is None else read_concept(concepts_folder(library), name)


def concepts_folder(library: Library) -> Path:
    """Where a library's concepts lie. Raises UsageError where it keeps none."""
    if library.concepts is None:
        raise UsageError("no folder of concepts is known here: search for a text")
    return library.concepts


def learn(library: Library, index: str, text: str, marks: Feedback, refiner: str = "") -> Refinement:
    """What a text, or a concept, and marks mean in an index.

    index: its name.
    text: an empty one for what only the marks tell.
    marks: those of a concept's images take the place of the concept's own.
    refiner: one of REFINERS; an empty one for the concept's own, or the default.

    Raises as `refine_index` and `refine_by_concept` do.
    """
    searcher, sample = library.searcher(index), library.sample(index)
    concept = named_concept(library, text)
    if concept is not None:
        return refine_by_concept(searcher, concept, sample, marks, refiner)
    embedding = searcher.text_query(clean_query(text)).embeddings[0] if text.strip() else None
    return refine_index(searcher.index, embedding, marks, refiner or DEFAULT_REFINER, sample)


def keep(library: Library, name: str, index: str, text: str, marks: Feedback, replace: bool = False) -> KeptConcept:
    """Keep a text, or a concept, and marks on an index under a name of their own.

    replace: a concept of that name gives way.

    Raises as `make_concept` and `write_concept` do.
    """
    concept = named_concept(library, text)
    held = library.searcher(index).index
    if concept is None:
        kept = make_concept(name, held, marks, clean_query(text))
    else:
        refine_by_concept(
            library.searcher(index), concept, library.sample(index), marks
        )  # which refuses what doesn't fit
        together = concept.feedback.then(marks)
        kept = make_concept(name, held, together, concept.text, concept.refiner, concept.threshold)
    write_concept(concepts_folder(library), kept, replace)
    return kept


def learnt_things(library: Library, index: str, combination: Combination) -> dict[str, Thing]:
    """The things of a combination that are concepts. Raises as `learn` and `learnt_thing` do."""
    concepts = [text for _, text in combination.things if concept_name(text) is not None]
    return {text: learnt_thing(learn(library, index, text, NO_MARKS), text) for text in concepts}


def compare_methods(library: Library, index: str, names: list[str], text: str, k: int) -> SideBySide:
    """A text or a concept through several methods, see `ask_side_by_side`; a concept is learnt again for each.

    index: whose labels tell which hits are right; a concept is looked for among them by its name.
    names: of the indexes that are compared.
    """
    searchers = {name: library.searcher(name) for name in names}
    labels = library.labels(index)
    concept = named_concept(library, text)
    if concept is None:
        return ask_side_by_side(searchers, clean_query(text), k, labels)
    samples = {id(searcher): library.sample(name) for name, searcher in searchers.items()}

    def find(searcher: Searcher, depth: int) -> SearchResult:
        return find_by_concept(searcher, concept, depth, samples[id(searcher)])

    return ask_side_by_side(searchers, text, k, labels, find, concept.name)
