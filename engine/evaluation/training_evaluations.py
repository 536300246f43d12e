"""The replies of evaluations during training, stored with their scores like those of `cockpit eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.evaluation.results_store import REPLIES, ResultStore
from engine.evaluation.summarize import judge_thresholds, passes
from engine.options import thresholds
from engine.protocol.home import RunDirectory
from engine.tasks.task import load_task


def save(
    run: RunDirectory,
    step: int,
    facts: Mapping[str, Any],
    replies: Sequence[tuple[list[dict[str, Any]], str, str]],
    values: Mapping[str, float],
    limits: list[str],
) -> None:
    """Write `(prompt, reference, reply)` of a step under the run, replacing those of an earlier attempt.

    `facts` are the `task`, the name of the `data` and its `sha256`; `values` are the evaluation's metrics by journal
    name. Raises OSError.
    """
    task = load_task(facts["task"])
    metrics = {name.removeprefix("eval/"): value for name, value in values.items()}
    identity = {"origin": "training", "target": f"{run.id}@{step}", **facts, "rows": len(replies)}
    parsed = [thresholds.parse_threshold(text) for text in limits]
    entries = []
    for row, (prompt, reference, reply) in enumerate(replies):
        scores = task.score([reply], [reference])
        passed = passes(scores, parsed)
        entries.append(
            {"row": row, "asked": prompt, "reference": reference, "reply": reply, "scores": scores, "passed": passed}
        )
    with ResultStore(run.evaluations / f"step-{step:08d}-training", identity, again=True) as store:
        store.add(REPLIES, entries)
        about = {"run": run.id, "step": step, "replies": len(replies), "notes": []}
        store.finish(entries, {**judge_thresholds(metrics, limits), **about, **facts})
