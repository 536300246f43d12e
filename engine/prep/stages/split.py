"""Fourth stage: holds out rows for validation and test. Similar rows stay in the same part, unless so many are similar
that the share could not be held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.options.data import DedupOptions, SplitOptions
from engine.prep import chunks
from engine.prep.stages import fingerprints, row_files, row_text
from engine.prep.stages.context import Context
from engine.prep.stages.fingerprints import Fingerprints

PARTS = ("train", "validation", "test")
_MARGIN = 0.1
"""Rows this much below the threshold count as similar too, because the similarity is only an estimate."""
_TOLERANCE = 0.1
"""Part of a share by which it may be missed to keep similar rows together."""
_MOST_VALUES = 10_000
"""Distinct values, at most, of a column to stratify by; with more it is not a category."""


def split(
    rows: Path, out: Mapping[str, Path], options: SplitOptions, like: DedupOptions, context: Context
) -> dict[str, Any]:
    """Write each row to the file of its part (`PARTS`), in the rows' order. Returns `in`, the rows of each part, `cut`
    (held-out rows that have similar rows in another part), and any strata.

    The choice depends on the seed and the rows' content, not on their order: whole clusters of equal or similar rows
    (`like.threshold`, `like.shingle`) are chosen by a hash of their content, and each stratum gives its share. If a
    share cannot be met with whole clusters, rows of the largest one are held out. Raises
    ValueError if no row has the column to stratify by, or if no row is left for training.
    """
    prints = fingerprints.take_fingerprints([rows], like.shingle, True, context, "fingerprints")
    strata, names = _read_strata(rows, prints.rows, options.stratify_by)
    part, cut = assign_parts(prints, strata, options, like.threshold)
    if prints.rows and not (part == 0).any():
        raise ValueError(f"of {prints.rows} rows none would be left to train on: lower the shares of data.split")
    total, done = rows.stat().st_size, 0
    with chunks.write_together(*(out[name] for name in PARTS)) as files:
        for number, row in enumerate(row_files.read_file(rows)):
            line = row.to_line()
            files[part[number]].write(line)
            done += len(line)
            context.progress("splitting", done, total)
    report: dict[str, Any] = {"in": prints.rows, **{name: int((part == at).sum()) for at, name in enumerate(PARTS)}}
    report["cut"] = cut
    if options.stratify_by:
        report["strata"] = {
            value: {name: int(((strata == code) & (part == at)).sum()) for at, name in enumerate(PARTS)}
            for code, value in enumerate(names)
        }
    return report


def assign_parts(prints: Fingerprints, strata: Any, options: SplitOptions, threshold: float) -> tuple[Any, int]:
    """uint8[rows], the number of each row's part in `PARTS`, and the number of rows that were held out of clusters
    whose other rows are in another part."""
    import numpy as np

    if not prints.rows:
        return np.zeros(0, dtype=np.uint8), 0
    first = fingerprints.find_equal(prints)
    label = fingerprints.cluster_near(prints, first == np.arange(prints.rows), max(0.05, threshold - _MARGIN))
    label = label[first]  # copies of a row go into the same part
    key = _row_keys(prints, options.seed)
    # A cluster is ordered by its lowest key, and belongs to that row's stratum, so the order of rows does not matter.
    order = np.lexsort((key, label))
    begins = np.flatnonzero(np.diff(label[order], prepend=-1))
    leads, sizes = order[begins], np.diff(np.append(begins, prints.rows))
    cluster_of = np.searchsorted(label[order[begins]], label)
    chosen, due = _choose_clusters(strata[leads], key[leads], sizes, options)
    part = chosen[cluster_of]
    for number, share in ((2, options.test), (1, options.validation)):
        wanted, whole = int(due[number] + 0.5), share * prints.rows
        if share and prints.rows > 1 and not wanted and not (part == number).any():
            wanted = 1  # a share of a few rows is rounded to nothing
        if wanted > _TOLERANCE * whole:
            ranks = np.lexsort((key, key[leads][cluster_of], -sizes[cluster_of]))
            _cut_clusters(part, number, wanted, first, ranks)
    lowest, highest = np.full(len(leads), 2, dtype=np.uint8), np.zeros(len(leads), dtype=np.uint8)
    np.minimum.at(lowest, cluster_of, part)
    np.maximum.at(highest, cluster_of, part)
    return part, int(((part > 0) & (lowest != highest)[cluster_of]).sum())


def _choose_clusters(strata: Any, key: Any, sizes: Any, options: SplitOptions) -> tuple[Any, dict[int, float]]:
    """uint8[clusters], the part of each cluster as a whole, and the rows that are still due to each held-out part."""
    import numpy as np

    chosen = np.zeros(len(sizes), dtype=np.uint8)
    due = {1: 0.0, 2: 0.0}
    for stratum in range(int(strata.max()) + 1):
        mine = np.flatnonzero(strata == stratum)
        mine = mine[np.argsort(key[mine], kind="stable")]
        rows = int(sizes[mine].sum())
        for number, share in ((2, options.test), (1, options.validation)):
            # The remainder of rounding in one stratum is carried over to the next, so the shares also hold overall.
            due[number] += rows * share
            wanted = int(due[number] + 0.5)
            for cluster in mine.tolist():
                if wanted and not chosen[cluster] and sizes[cluster] <= wanted:
                    chosen[cluster] = number
                    wanted -= int(sizes[cluster])
                    due[number] -= int(sizes[cluster])
    return chosen, due


def _cut_clusters(part: Any, number: int, wanted: int, first: Any, ranks: Any) -> None:
    """Give `wanted` training rows, in the order of `ranks` and copies of a row together, to a part; at least one row
    stays for training."""
    import numpy as np

    copies = np.bincount(first, minlength=len(first))
    left, moved, taken = int((part == 0).sum()), 0, []
    for row in ranks[(part[ranks] == 0) & (first[ranks] == ranks)].tolist():
        size = int(copies[row])
        if size <= wanted - moved and size < left - moved:
            taken.append(row)
            moved += size
            if moved == wanted:
                break
    part[np.isin(first, taken)] = number


def _row_keys(prints: Fingerprints, seed: int) -> Any:
    """uint64[rows]: a uniformly distributed number for each content and seed."""
    import numpy as np

    hashes = np.fromfile(prints.hashes, dtype="<u8").reshape(-1, 2)
    return fingerprints.mix(hashes[:, 0] ^ fingerprints.mix(hashes[:, 1] + np.uint64(seed % 2**64)))


def _read_strata(rows: Path, count: int, by: str | None) -> tuple[Any, list[str]]:
    """int32[rows], the stratum of each row, and the strata's values in alphabetical order; "" stands for rows without
    one."""
    import numpy as np

    strata = np.zeros(count, dtype=np.int32)
    if by is None:
        return strata, []
    known: dict[str, int] = {}
    there: Counter[str] = Counter()
    for number, row in enumerate(row_files.read_file(rows)):
        content = row.row()
        value = row_text.column(content, by)
        if value is None:
            there.update(row_text.columns(content))
        strata[number] = known.setdefault("" if value is None else value, len(known))
        if len(known) > _MOST_VALUES:
            raise ValueError(f"the column {by} has more than {_MOST_VALUES} values: it cannot stratify a split")
    if count and list(known) == [""]:
        listed = ", ".join(name for name, _ in there.most_common(20)) or "none"
        raise ValueError(f"no row has the column {by} to stratify by; there are {listed}")
    names = sorted(known)
    ranks = np.array([names.index(value) for value in known], dtype=np.int32)
    return ranks[strata] if count else strata, names
