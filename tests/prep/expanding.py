"""Expansions of the bundled triples, or of seeds of a test's own, by a service on the loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.options.data import ExpandOptions, SourceOptions
from engine.prep import read_rows
from engine.prep.expand.expand import expand
from tests.prep.service import LoopbackService, completion

BUNDLED = "triples/train.jsonl"


def options(service: LoopbackService, **further: Any) -> ExpandOptions:
    return ExpandOptions(base_url=service.url, **{"samples": 10, "concurrency": 2, **further})


def run(chosen: ExpandOptions, out: Path, source: str | Path = BUNDLED) -> dict[str, Any]:
    seeds = SourceOptions(source=str(source))
    return expand(read_rows.locate(seeds, Path.cwd()), seeds, chosen, out, lambda *_: None)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replies(*items: Any) -> Callable[[int, dict[str, Any]], Any]:
    """The items in one answer, then nothing new."""
    return lambda number, _body: completion(json.dumps(list(items) if number == 0 else []))
