"""Fifth stage: the same number of rows for each value of a column. Training rows only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from statistics import median_low
from typing import Any

from engine.options.data import BalanceOptions
from engine.prep import chunks
from engine.prep.stages import row_files, row_text
from engine.prep.stages.context import Context

_MOST_VALUES = 10_000


def balance(rows: Path, out: Path, options: BalanceOptions, context: Context) -> dict[str, Any]:
    """Write `rows` to `out`, with larger groups thinned out by a seeded choice and smaller ones repeated. Rows keep
    their order; repetitions follow one another.

    Rows without the column are kept and reported as the group "". Returns `in`, `out`, `dropped`, `repeated` (rows
    added) and `groups`: value -> [before, after]. Raises ValueError if no row has the column.
    """
    groups: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for row in row_files.read_file(rows):
        content = row.row()
        value = row_text.column(content, options.by)
        groups[value or ""] += 1
        there.update(row_text.columns(content))
        if len(groups) > _MOST_VALUES:
            raise ValueError(f"the column {options.by} has more than {_MOST_VALUES} values: it cannot be balanced")
    if groups and set(groups) == {""}:
        listed = ", ".join(name for name, _ in there.most_common(20)) or "none"
        raise ValueError(f"no row has the column {options.by} to balance by; there are {listed}")
    target = _group_size([size for value, size in groups.items() if value], options)
    left = dict(groups)
    due = {value: target % size if size <= target else target for value, size in groups.items()}
    chance = {value: Random(f"{options.seed}:{value}") for value in groups}
    after: Counter[str] = Counter()
    total, done = rows.stat().st_size, 0
    with chunks.write_together(out) as (file,):
        for row in row_files.read_file(rows):
            found = row_text.column(row.row(), options.by)
            value = found or ""
            line = row.to_line()
            done += len(line)
            context.progress("balancing", done, total)
            if not value:
                after[value] += 1
                file.write(line)
                continue
            # Selection sampling (Knuth, TAOCP 3.4.2, algorithm S): exactly `due` rows, each choice equally likely.
            more = chance[value].random() * left[value] < due[value]
            left[value] -= 1
            due[value] -= more
            times = target // groups[value] + more if groups[value] <= target else int(more)
            after[value] += times
            for _ in range(times):
                file.write(line)
    before = sum(groups.values())
    return {
        "in": before,
        "out": sum(after.values()),
        "dropped": sum(max(0, size - after[value]) for value, size in groups.items()),
        "repeated": sum(max(0, after[value] - size) for value, size in groups.items()),
        "groups": {value: [groups[value], after[value]] for value in sorted(groups)},
    }


def _group_size(sizes: list[int], options: BalanceOptions) -> int:
    if isinstance(options.to, int):
        return options.to
    sizes = sorted(sizes) or [0]
    return {"smallest": sizes[0], "median": median_low(sizes), "largest": sizes[-1]}[options.to]
