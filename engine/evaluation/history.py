"""Reading evaluations for a screen: those of a run, their replies by page, and a comparison of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.evaluation import benchmarks, forgetting, results_store
from engine.evaluation.compare import compare
from engine.evaluation.results_store import REPLIES
from engine.evaluation.summarize import prompt_text, read_tallies
from engine.metrics import registry
from engine.protocol import journal
from engine.protocol.home import RunDirectory

_CUT = 200
"""Longest text in a list, in characters."""


def list_evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """The evaluations of a run by step, those of training first. Each has `name directory origin step task data sha256
    rows replies state metrics passed thresholds notes began directions`. Those of training without replies have no
    `directory`."""
    folders = sorted(run.evaluations.glob("step-*"))
    evaluations = [_read_folder(folder) for folder in folders if results_store.read_result(folder)]
    in_folders = {each["step"] for each in evaluations if each["origin"] == "training"}
    evaluations += [each for each in _read_journal(run) if each["step"] not in in_folders]
    for each in evaluations:
        each["directions"] = {name: registry.direction(name) for name in each["metrics"]}
    return sorted(evaluations, key=lambda each: (each["step"], each["origin"] != "training", each["began"]))


def _read_folder(folder: Path) -> dict[str, Any]:
    content = results_store.read_result(folder)
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


def _read_journal(run: RunDirectory) -> list[dict[str, Any]]:
    """The last evaluation of each step in the run's journal."""
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
                continue  # of the test rows; that evaluation has a folder of its own
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


def page_replies(folder: Path, start: int, count: int, by: str | None, passed: bool | None) -> dict[str, Any]:
    """A page of replies, the worst first: `total`, `by`, `scores` (the names to sort by) and `replies` with `row prompt
    reply reference scores passed`, their texts shortened. `by` is a score (None: the task's main one); `passed` selects
    those that passed, or those that failed."""
    task = results_store.read_result(folder).get("identity", {}).get("task")
    by = by or registry.main_metric(task)
    entries = [
        entry
        for entry in results_store.read_lines(folder / REPLIES)
        if passed is None or (entry.get("passed") is not False) == passed
    ]
    lower_is_better = registry.direction(by) < 0
    worst = float("-inf")

    def rank(entry: dict[str, Any]) -> tuple[float, float, int]:
        scores = entry.get("scores", {})
        value = scores.get(by, worst)
        return (-value if lower_is_better else value), scores.get("rouge_l", 0.0), entry["row"]

    entries.sort(key=rank)
    names = list(dict.fromkeys(name for entry in entries[:100] for name in entry.get("scores", {})))
    return {
        "total": len(entries),
        "by": by,
        "scores": names,
        "replies": [
            {
                "row": entry["row"],
                "prompt": _cut(prompt_text(entry)),
                "reply": _cut(entry["reply"]),
                "reference": _cut(entry.get("reference") or ""),
                "scores": entry.get("scores", {}),
                "passed": entry.get("passed"),
            }
            for entry in entries[start : start + count]
        ],
    }


def read_reply(folder: Path, row: int) -> dict[str, Any]:
    """The whole entry of one reply. Raises ValueError for a row without one."""
    for entry in results_store.read_lines(folder / REPLIES):
        if entry["row"] == row:
            return entry
    raise ValueError(f"row {row + 1} has no reply in {folder}")


def compare_folders(first: Path, second: Path) -> dict[str, Any]:
    """`compare` on two folders. Raises ValueError for evaluations of different rows or tasks."""
    identities = [results_store.read_result(folder).get("identity", {}) for folder in (first, second)]
    if all("benchmarks" in identity for identity in identities):
        return benchmarks.compare_folders(first, second)
    if all("forgetting" in identity for identity in identities) and identities[0]["sha256"] == identities[1]["sha256"]:
        return forgetting.compare_folders(first, second)
    for name, words in (("sha256", "rows"), ("task", "tasks"), ("benchmarks", "benchmarks")):
        if identities[0].get(name) != identities[1].get(name):
            raise ValueError(f"the two were measured on different {words} and cannot be compared")
    task = identities[0].get("task")
    return compare(read_tallies(first, task), read_tallies(second, task), task)


def compare_newest(first: RunDirectory, other: RunDirectory) -> dict[str, Any] | None:
    """`compare` on the newest evaluations of two runs that measured the same rows and kept the replies, with
    `first_step`, `step` and `data`; None when there are no such."""
    sides = [[each for each in list_evaluations(run) if each["directory"]] for run in (first, other)]
    for one in reversed(sides[0]):
        for each in reversed(sides[1]):
            if all(one[name] == each[name] for name in ("sha256", "task", "data")):
                try:
                    found = compare_folders(Path(one["directory"]), Path(each["directory"]))
                except (ValueError, OSError):
                    continue
                return found | {"first_step": one["step"], "step": each["step"], "data": one["data"]}
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"
