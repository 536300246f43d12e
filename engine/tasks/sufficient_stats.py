"""What single replies add to a score over many, so that any choice of rows has its score without a look at the replies again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

Tally = dict[str, float]
"""What one row adds, by name; a name that is missing adds nothing."""


def summed(tallies: Iterable[Mapping[str, float]]) -> Counter[str]:
    """Their sum, name by name."""
    whole: Counter[str] = Counter()
    for tally in tallies:
        whole.update(tally)  # type: ignore[arg-type]  # floats, too
    return whole


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 where there is no whole."""
    return part / whole if whole else 0.0


def each(tally: Callable[[str, str | None], Tally], replies: Sequence[str], references: Sequence[str]) -> list[Tally]:
    """What each reply adds beside its reference. Raises ValueError for lists that do not pair up, and naming the row for
    what `tally` refuses."""
    if len(replies) != len(references):
        raise ValueError(f"{len(replies)} replies for {len(references)} references")
    found = []
    for index, (reply, reference) in enumerate(zip(replies, references, strict=True)):
        try:
            found.append(tally(reply, reference))
        except ValueError as error:
            raise ValueError(f"reference {index} {error}")
    return found
