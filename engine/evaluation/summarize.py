"""What comes of an evaluation: points of a judge, scores of every reply, metrics of all, thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.evaluation.judge import Case, judge
from engine.evaluation.metrics import judge_scores, registry
from engine.evaluation.metrics.registry import Tallies
from engine.evaluation.request import Wanted, Watch, judging
from engine.evaluation.results_store import JUDGE, LOSSES, REPLIES, Record, lines
from engine.options import thresholds
from engine.tasks.answer import Answer


def conclude(record: Record, told: Mapping[str, Any], wanted: Wanted, notes: list[str], watch: Watch) -> dict[str, Any]:
    """Let the judge judge, score every reply, and write down what came out; `told` is what else is to be said of it. Raises ProblemError,
    ValueError."""
    entries = [entry for _, entry in sorted(record.done(REPLIES).items())]
    further: dict[str, Any] = {}
    if wanted.judge is not None and entries:
        watch("judging", 0, len(entries))
        found = judge(
            [Case(entry["row"], text_of(entry), entry["reply"], entry.get("reference")) for entry in entries],
            judging(wanted.judge),
            record.folder / JUDGE,
            lambda done, total: watch("judging", done, total),
        )
        for entry in entries:
            entry.pop("judge", None)
            if entry["row"] in found.points:
                entry["judge"] = found.points[entry["row"]]
        used = {"prompt_tokens": found.usage.prompt, "reply_tokens": found.usage.reply, "cost": found.cost}
        further = {"judge_usage": used}
        if found.stopped:
            notes.append(f"not every reply was judged: {found.stopped}")
    limits = [thresholds.parse_threshold(text) for text in wanted.thresholds or ()]
    for done, entry in enumerate(entries, 1):
        entry["scores"] = registry.scores(tallies_of(entry, wanted.task), wanted.task)
        entry["passed"] = passes(entry["scores"], limits)
        watch("scoring", done, len(entries))
    rows = together(record.done(LOSSES).values(), entries, wanted.task)
    found_metrics = registry.metrics(registry.together(rows.values()), wanted.task)
    result = {
        **outcome(found_metrics, wanted.thresholds or []),
        **told,
        "task": wanted.task,
        "replies": len(entries),
        "notes": list(dict.fromkeys(notes)),
        "directory": str(record.folder),
        **further,
    }
    record.finish(entries, result)
    return result


def outcome(metrics: Mapping[str, float], limits: list[str]) -> dict[str, Any]:
    """`metrics`, `passed`, and each threshold with its value. Raises ValueError."""
    verdicts = thresholds.check_thresholds(limits, {f"eval/{name}": value for name, value in metrics.items()})
    return {
        "metrics": dict(metrics),
        "passed": all(verdict.passed for verdict in verdicts),
        "thresholds": [
            {
                "threshold": str(verdict.threshold),
                "value": verdict.value,
                "passed": verdict.passed,
                "text": str(verdict),
            }
            for verdict in verdicts
        ],
    }


def passes(scores: Mapping[str, float], limits: Iterable[thresholds.Threshold]) -> bool | None:
    """Whether one reply holds what is asked of all; without such a threshold whether it fits its task's schema. None: nothing says."""
    asked = [each for each in limits if each.name.removeprefix("eval/") in scores]
    if asked:
        return all(each.is_met(scores[each.name.removeprefix("eval/")]) for each in asked)
    return scores["schema_validity"] == 1 if "schema_validity" in scores else None


def text_of(entry: Mapping[str, Any]) -> str:
    """What was asked last."""
    asked = entry.get("asked")
    return str(asked[-1]["content"]) if isinstance(asked, list) and asked else str(asked or "")


def answer_of(entry: Mapping[str, Any]) -> Answer:
    return Answer(
        entry["reply"], entry.get("reference"), entry.get("tokens"), entry.get("stopped"), entry.get("seconds")
    )


def tallies_of(entry: Mapping[str, Any], task: str | None) -> Tallies:
    """Of a line of `replies.jsonl`. Raises ValueError, naming its row, for a reference that is no answer to the task."""
    try:
        found = registry.of_answer(answer_of(entry), task)
    except ValueError as error:
        raise ValueError(f"the reference of row {entry['row'] + 1} {error}")
    if "judge" in entry:
        found["judge"] = judge_scores.tally(entry["judge"])
    return found


def together(
    losses: Iterable[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]], task: str | None
) -> dict[int, Tallies]:
    """Row -> all that was measured of it."""
    found: dict[int, Tallies] = {}
    for loss in losses:
        measure = "preferences" if "pairs" in loss else "tokens"
        found.setdefault(loss["row"], {})[measure] = {name: value for name, value in loss.items() if name != "row"}
    for entry in entries:
        found.setdefault(entry["row"], {}).update(tallies_of(entry, task))
    return found


def kept(folder: Path, task: str | None) -> dict[int, Tallies]:
    """`together`, of an evaluation's folder."""
    return together(lines(folder / LOSSES), lines(folder / REPLIES), task)
