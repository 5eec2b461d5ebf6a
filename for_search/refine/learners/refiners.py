"""Refiners by name: the one place where a refiner is added."""

from for_model.errors import UsageError
from for_search.refine.learners.branches import BranchesRefiner
from for_search.refine.learners.linear import LinearRefiner, MarksOnlyRefiner
from for_search.refine.learners.refiner_protocol import Refiner
from for_search.refine.learners.rocchio import RocchioRefiner
from for_search.refine.learners.similarity import SimilarityRefiner

DEFAULT_REFINER = SimilarityRefiner.name
REFINERS: dict[str, type[Refiner]] = {
    refiner.name: refiner
    for refiner in (SimilarityRefiner, LinearRefiner, RocchioRefiner, MarksOnlyRefiner, BranchesRefiner)
}


def refiner_of(name: str) -> Refiner:
    """The refiner of a name. Raises UsageError that lists the names for any other."""
    if name not in REFINERS:
        raise UsageError(f"no refiner is called {name!r}: choose one of {', '.join(REFINERS)}")
    return REFINERS[name]()
