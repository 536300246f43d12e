"""Third stage: removes exact and near duplicates. The first row is kept, and rows that held-out sets contain are
dropped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engine.options.data import DedupOptions
from engine.prep import chunks
from engine.prep.stages import fingerprints, row_files
from engine.prep.stages.context import Context
from engine.prep.stages.fingerprints import Fingerprints

KEPT, EXACT, NEAR, HELD_OUT_EXACT, HELD_OUT_NEAR = range(5)
"""The fate of a row, uint8."""

_REASONS = {
    EXACT: "exact duplicate of {}",
    NEAR: "near-duplicate of {}",
    HELD_OUT_EXACT: "held out: exact duplicate of {}",
    HELD_OUT_NEAR: "held out: near-duplicate of {}",
}
_LEADERS = 256
"""Latest kept rows of a cluster with which each further row is compared."""


def dedup(
    rows: Path, out: Path, rejects: Path, options: DedupOptions, context: Context, against: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the rows that are not duplicates to `out`, the others to `rejects`.

    A row is dropped if it equals an earlier one, or is similar to an earlier one that is kept. The rows in `against`
    come before all others and are kept. Returns `in`, `out`, `rejected`, `exact`, `near`, and `held_out`, the
    duplicates of rows in `against`.
    """
    prints = fingerprints.take_fingerprints([*against, rows], options.shingle, options.near, context, "fingerprints")
    with ExitStack() as stack:
        before = sum(sum(1 for _ in stack.enter_context(path.open("rb"))) for path in against)
    fate, of = decide_rows(prints, before, options)
    places = _Places(prints, context)
    total = rows.stat().st_size
    done = 0
    with chunks.write_together(out, rejects) as (kept, dropped):
        for number, row in enumerate(row_files.read_file(rows), before):
            line = row.to_line()
            done += len(line)
            context.progress("removing duplicates", done, total)
            if fate[number] == KEPT:
                kept.write(line)
            else:
                reason = _REASONS[int(fate[number])].format(places.describe(int(of[number])))
                dropped.write(
                    row_files.reject_line(context.files[row.file], row, reason, "dedup", code="row.duplicate")
                )
    counts = [int((fate[before:] == each).sum()) for each in range(5)]
    return {
        "in": prints.rows - before,
        "out": counts[KEPT],
        "rejected": sum(counts[1:]),
        "exact": counts[EXACT] + counts[HELD_OUT_EXACT],
        "near": counts[NEAR] + counts[HELD_OUT_NEAR],
        "held_out": counts[HELD_OUT_EXACT] + counts[HELD_OUT_NEAR],
    }


def decide_rows(prints: Fingerprints, before: int, options: DedupOptions) -> tuple[Any, Any]:
    """The fate of each row (uint8), and the row of which it is a duplicate (int64). The first `before` rows are held
    out and kept."""
    import numpy as np

    fate = np.zeros(prints.rows, dtype=np.uint8)
    of = np.arange(prints.rows, dtype=np.int64)
    if options.exact:
        of = fingerprints.find_equal(prints)
        again = of != np.arange(prints.rows)
        fate[again] = np.where(of[again] < before, HELD_OUT_EXACT, EXACT)
    if options.near:
        label = fingerprints.cluster_near(prints, fate == KEPT, options.threshold)
        _mark_near(prints, label, before, options.threshold, fate, of)
    fate[:before] = KEPT
    return fate, of


def _mark_near(prints: Fingerprints, label: Any, before: int, threshold: float, fate: Any, of: Any) -> None:
    """In each cluster, mark the rows that are similar to an earlier kept row. Similarity to a dropped row does not
    count, so the far end of a chain of similar rows is kept."""
    import numpy as np

    members = np.flatnonzero(np.bincount(label, minlength=len(label))[label] > 1)
    members = members[np.lexsort((members, label[members]))]
    borders = np.flatnonzero(np.diff(label[members], prepend=-1, append=-1))
    with fingerprints.Signatures(prints) as table:
        for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            leaders: list[int] = []
            known = np.zeros((0, fingerprints.SLOTS), dtype=np.uint16)
            for at in range(start, end, 4096):
                block = members[at : min(end, at + 4096)]
                for row, signature in zip(block.tolist(), table.read(block), strict=True):
                    alike = (known == signature).mean(axis=1) if len(known) else np.zeros(0)
                    if row >= before and len(alike) and alike.max() >= threshold:
                        of[row] = leaders[int(alike.argmax())]
                        fate[row] = HELD_OUT_NEAR if of[row] < before else NEAR
                    else:
                        leaders = [*leaders, row][-_LEADERS:]
                        known = np.concatenate([known, signature[None]])[-_LEADERS:]


class _Places:
    """Describes rows by their place in their file, for messages."""

    def __init__(self, prints: Fingerprints, context: Context) -> None:
        self._file, self._files = prints.places, context.files

    def describe(self, number: int) -> str:
        import numpy as np

        file, line = np.fromfile(self._file, dtype="<i8", count=2, offset=16 * number).tolist()
        return f"{Path(self._files[file]).name}:{line}"
