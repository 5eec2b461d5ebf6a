"""Which parts of something that grows are worth writing again: of a store its shards, of an index its segments."""

from collections.abc import Sequence

_MOST_DEAD = 0.2  # of a part's rows
_GROWTH = 4  # a part that is at most so many times as large as all that came after it is merged with that


def to_merge(rows: Sequence[int], alive: Sequence[int], new: int = 0, full: int | None = None) -> list[int]:
    """Positions of the parts that shall be written again, together with what is new.

    rows: each part's rows; the parts lie in the order in which they were written.
    alive: how many of them are still somebody's; a part without any isn't listed, as it is dropped anyway.
    new: rows that are about to be written after the last part.
    full: parts of so many live rows aren't merged for being small; None for no such size.

    A part is written again when more than a fifth of it is dead, or when it is small beside what came after it: so the
    number of parts grows with the logarithm of the rows that they hold, and a row is seldom written again.
    """
    tail, after = [], new
    for i in reversed(range(len(rows))):
        if (full is not None and alive[i] >= full) or (after and alive[i] > _GROWTH * after):
            break
        after += alive[i]
        tail += [i] if alive[i] else []
    worn = {i for i in range(len(rows)) if 0 < alive[i] < (1 - _MOST_DEAD) * rows[i]}
    return sorted(worn.union(tail if len(tail) + (new > 0) > 1 else ()))
