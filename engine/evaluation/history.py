"""What was measured, for a screen: the evaluations of a run, their replies a page at a time, and two of them compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.evaluation import results_store
from engine.evaluation.compare import compare
from engine.evaluation.results_store import REPLIES
from engine.evaluation.summarize import kept, text_of
from engine.metrics import registry
from engine.protocol import journal
from engine.protocol.home import RunDirectory

_CUT = 200
"""Characters of a text in a list."""


def of_run(run: RunDirectory) -> list[dict[str, Any]]:
    """Each by step, those of training first: `name directory origin step task data rows replies state metrics passed thresholds notes began
    directions`. What training measured without writing replies has no `directory`."""
    found = [_told(folder) for folder in sorted(run.evaluations.glob("step-*")) if results_store.read(folder)]
    trained = {each["step"] for each in found if each["origin"] == "training"}
    found += [each for each in _journaled(run) if each["step"] not in trained]
    for each in found:
        each["directions"] = {name: registry.direction(name) for name in each["metrics"]}
    return sorted(found, key=lambda each: (each["step"], each["origin"] != "training", each["began"]))


def _told(folder: Path) -> dict[str, Any]:
    content = results_store.read(folder)
    identity = content.get("identity", {})
    step = folder.name.split("-")[1]
    return {
        "name": folder.name,
        "directory": str(folder),
        "origin": identity.get("origin", "eval"),
        "step": int(step) if step.isdecimal() else 0,
        "task": identity.get("task"),
        "data": identity.get("data", ""),
        "sha256": identity.get("sha256", ""),
        "rows": identity.get("rows", 0),
        "replies": content.get("replies", 0),
        "state": content.get("state", ""),
        "metrics": content.get("metrics", {}),
        "passed": content.get("passed"),
        "thresholds": content.get("thresholds", []),
        "notes": content.get("notes", []),
        "began": content.get("began", 0.0),
    }


def _journaled(run: RunDirectory) -> list[dict[str, Any]]:
    """Of each step the last evaluation that the run's journal has."""
    found: dict[int, dict[str, Any]] = {}
    for line, _ in journal.read_lines(run.events):
        if b'"evaluation"' not in line:
            continue
        entry = journal.decode(line)
        if isinstance(entry, journal.Evaluation):
            values = {
                name.removeprefix("eval/"): value
                for name, value in entry.values.items()
                if name.startswith("eval/") and value is not None
            }
            if not values:
                continue  # of the test rows, by an evaluation that has a folder of its own
            found[entry.step] = {
                "name": f"step {entry.step}",
                "directory": "",
                "origin": "training",
                "step": entry.step,
                "task": None,
                "data": "held-out rows",
                "sha256": "",
                "rows": 0,
                "replies": 0,
                "state": "done",
                "metrics": values,
                "passed": None,
                "thresholds": [],
                "notes": [],
                "began": entry.time,
            }
    return list(found.values())


def replies(folder: Path, start: int, count: int, by: str | None, passed: bool | None) -> dict[str, Any]:
    """A page of replies, the worst first: `total`, `by`, `scores` (names that they can be sorted by) and `replies` with `row prompt reply
    reference scores passed`, texts cut. `by` is a score (None: the task's main one); `passed` keeps those that did, or did not."""
    task = results_store.read(folder).get("identity", {}).get("task")
    by = by or registry.main_metric(task)
    entries = [
        entry
        for entry in results_store.lines(folder / REPLIES)
        if passed is None or (entry.get("passed") is not False) == passed
    ]
    falling = registry.direction(by) < 0
    worst = float("-inf")

    def badness(entry: dict[str, Any]) -> tuple[float, float, int]:
        scores = entry.get("scores", {})
        value = scores.get(by, worst)
        return (-value if falling else value), scores.get("rouge_l", 0.0), entry["row"]

    entries.sort(key=badness)
    names = list(dict.fromkeys(name for entry in entries[:100] for name in entry.get("scores", {})))
    return {
        "total": len(entries),
        "by": by,
        "scores": names,
        "replies": [
            {
                "row": entry["row"],
                "prompt": _cut(text_of(entry)),
                "reply": _cut(entry["reply"]),
                "reference": _cut(entry.get("reference") or ""),
                "scores": entry.get("scores", {}),
                "passed": entry.get("passed"),
            }
            for entry in entries[start : start + count]
        ],
    }


def reply(folder: Path, row: int) -> dict[str, Any]:
    """All that was kept of one reply. Raises ValueError for a row that has none."""
    for entry in results_store.lines(folder / REPLIES):
        if entry["row"] == row:
            return entry
    raise ValueError(f"row {row + 1} has no reply in {folder}")


def compared(first: Path, second: Path) -> dict[str, Any]:
    """As `compare`. Raises ValueError for evaluations of other rows or other tasks."""
    told = [results_store.read(folder).get("identity", {}) for folder in (first, second)]
    for name, words in (("sha256", "rows"), ("task", "tasks")):
        if told[0].get(name) != told[1].get(name):
            raise ValueError(f"the two were measured on different {words} and cannot be compared")
    task = told[0].get("task")
    return compare(kept(first, task), kept(second, task), task)


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"
