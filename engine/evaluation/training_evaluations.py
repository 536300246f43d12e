"""The replies of evaluations during training, stored with their scores like those of `cockpit eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.evaluation.results_store import REPLIES, ResultStore
from engine.evaluation.summarize import judge_thresholds, passes, read_answer
from engine.options import thresholds
from engine.protocol.home import RunDirectory
from engine.tasks.task import load_task


def save(
    run: RunDirectory,
    step: int,
    facts: Mapping[str, Any],
    entries: Sequence[dict[str, Any]],
    values: Mapping[str, float],
    limits: list[str],
) -> None:
    """Write the replies of a step (`results_store.make_entry`) under the run, replacing those of an earlier attempt.

    `facts` are the `task`, the name of the `data` and its `sha256`; `values` are the evaluation's metrics by journal
    name. Raises OSError.
    """
    task = load_task(facts["task"])
    metrics = {name.removeprefix("eval/"): value for name, value in values.items()}
    identity = {"origin": "training", "target": f"{run.id}@{step}", **facts, "rows": len(entries)}
    parsed = [thresholds.parse_threshold(text) for text in limits]
    for entry in entries:
        answer = read_answer(entry)
        entry["scores"] = task.metrics(task.tally(answer.reply, answer.reference))
        entry["passed"] = passes(entry["scores"], parsed)
    with ResultStore(run.evaluations / f"step-{step:08d}-training", identity, again=True) as store:
        store.add(REPLIES, entries)
        about = {"run": run.id, "step": step, "replies": len(entries), "notes": []}
        store.finish(entries, {**judge_thresholds(metrics, limits), **about, **facts})
