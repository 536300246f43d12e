"""The replies of an evaluation while training, kept as those of `cockpit eval` are: every one with its scores."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from engine.evaluation.results_store import REPLIES, Record
from engine.evaluation.summarize import outcome, passes
from engine.options import thresholds
from engine.protocol.home import RunDirectory
from engine.tasks import TASKS


def keep(
    run: RunDirectory,
    step: int,
    told: Mapping[str, Any],
    replies: Sequence[tuple[list[dict[str, Any]], str, str]],
    values: Mapping[str, float],
    limits: list[str],
) -> None:
    """Write `(asked, reference, reply)` down under the run, in place of what an earlier attempt wrote of this step. `told` is the `task`, the `data`
    by name and its `sha256`; `values` are the evaluation's metrics by journal name. Raises OSError."""
    module = importlib.import_module(TASKS[told["task"]])
    metrics = {name.removeprefix("eval/"): value for name, value in values.items()}
    identity = {"origin": "training", "target": f"{run.id}@{step}", **told, "rows": len(replies)}
    parsed = [thresholds.parse_threshold(text) for text in limits]
    entries = []
    for row, (asked, reference, reply) in enumerate(replies):
        scores = module.score([reply], [reference])
        passed = passes(scores, parsed)
        entries.append(
            {"row": row, "asked": asked, "reference": reference, "reply": reply, "scores": scores, "passed": passed}
        )
    with Record(run.evaluations / f"step-{step:08d}-training", identity, again=True) as record:
        record.add(REPLIES, entries)
        about = {"run": run.id, "step": step, "replies": len(replies), "notes": []}
        record.finish(entries, {**outcome(metrics, limits), **about, **told})
