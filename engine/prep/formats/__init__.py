"""Shapes of rows. One row a shape: its module has `matches(row) -> bool` and `convert(row)`.

`convert` gives the canonical form, `{"messages": [{"role", "content"}, …]}` or `{"text": …}`, and raises ValueError, with the
reason, for a row that does not hold. Detection takes the first shape, in this order, that the rows match.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

FORMATS = {
    "messages": "engine.prep.formats.messages",
    "sharegpt": "engine.prep.formats.sharegpt",
    "alpaca": "engine.prep.formats.alpaca",
    "prompt_completion": "engine.prep.formats.prompt_completion",
    "context_target": "engine.prep.formats.context_target",
    "text": "engine.prep.formats.text",
}


def load(name: str) -> ModuleType:
    return importlib.import_module(FORMATS[name])


def detect(rows: Sequence[dict[str, Any]]) -> str:
    """The shape that most of these rows have. Raises ValueError when none has any: it names the columns seen."""
    counts = {name: sum(load(name).matches(row) for row in rows) for name in FORMATS}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        columns = sorted({str(column) for row in rows for column in row})
        raise ValueError(
            f"no known shape has the columns {', '.join(columns) or '(none)'}; known are {', '.join(FORMATS)}: say data.train.N.format"
        )
    return best
