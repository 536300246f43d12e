"""Leaves out the training rows that a list names, or uses them less often: `data.exclude`.

A list is a JSONL file with a row's `digest` and its `weight` in each line; everything else in a line is for its reader.
The digest is that of the canonical row as its source has it, so a list holds for these rows wherever they stand, and
for no others. `cockpit data worst --drop` writes such lists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from engine.prep import chunks
from engine.prep.formats.canonical import Canonical
from engine.prep.stages import row_files
from engine.prep.stages.context import Context
from engine.protocol.home import write_private


def digest(content: Canonical) -> str:
    """What names a canonical row in a list."""
    return hashlib.sha256(row_files.encode_sorted(content)).hexdigest()[:32]


def read_list(path: Path) -> dict[str, float]:
    """Digest -> weight. Raises ValueError, naming the line, and OSError."""
    weights = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            weights[str(entry["digest"])] = float(entry["weight"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path.name}:{number}: a line is {{"digest": …, "weight": 0 to 1}}') from None
        if not 0 <= weights[str(entry["digest"])] <= 1:
            raise ValueError(f"{path.name}:{number}: a weight is from 0 (leave the row out) to 1")
    return weights


def add_to_list(path: Path, entries: Iterable[Mapping[str, Any]]) -> int:
    """Add lines to a list, which may be new; a row that is in it already gets its new weight. Returns the number of
    rows in the list. Raises ValueError and OSError."""
    known: dict[str, Mapping[str, Any]] = {}
    if path.exists():
        read_list(path)
        lines = path.read_text(encoding="utf-8").splitlines()
        known = {entry["digest"]: entry for entry in map(json.loads, filter(str.strip, lines))}
    known |= {entry["digest"]: entry for entry in entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in known.values())
    write_private(path, text.encode())
    return len(known)


def exclude(rows: Path, out: Path, weights: Mapping[str, float], seed: int, context: Context) -> dict[str, Any]:
    """Write the rows that are kept: one with a weight is kept with this probability, by a choice that depends on the
    seed and on the row alone. Returns `in`, `out`, `listed` (rows that the list names) and `dropped`."""
    total, done = rows.stat().st_size, 0
    before = listed = dropped = 0
    with chunks.write_together(out) as (file,):
        for row in row_files.read_file(rows):
            line = row.to_line()
            done += len(line)
            before += 1
            name = digest(row.row())
            weight = weights.get(name)
            listed += weight is not None
            if weight is not None and Random(f"{seed}:{name}").random() >= weight:
                dropped += 1
            else:
                file.write(line)
            context.progress("excluding", done, total)
    return {"in": before, "out": before - dropped, "listed": listed, "dropped": dropped}
