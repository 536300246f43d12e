"""Sufficient statistics: what each reply adds to a score over many replies.

With these kept for each row, the score of any selection of rows is a sum away, without reading the replies again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

Tally = dict[str, float]
"""What one row adds, by name; a missing name adds nothing."""


def summed(tallies: Iterable[Mapping[str, float]]) -> Counter[str]:
    """The sum of tallies, name by name."""
    whole: Counter[str] = Counter()
    for tally in tallies:
        whole.update(tally)  # type: ignore[arg-type]  # floats, too
    return whole


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 where `whole` is 0."""
    return part / whole if whole else 0.0


def tally_each(
    tally: Callable[[str, str | None], Tally], replies: Sequence[str], references: Sequence[str]
) -> list[Tally]:
    """The tally of each reply beside its reference.

    Raises ValueError for lists of different lengths, and with the row's number for a reference that `tally` refuses.
    """
    if len(replies) != len(references):
        raise ValueError(f"{len(replies)} replies for {len(references)} references")
    found = []
    for index, (reply, reference) in enumerate(zip(replies, references, strict=True)):
        try:
            found.append(tally(reply, reference))
        except ValueError as error:
            raise ValueError(f"reference {index} {error}")
    return found
