"""The result of an evaluation: points of a judge, scores of every reply, metrics over all, thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.evaluation.judge import Case, judge
from engine.evaluation.request import EvaluationRequest, Watch, read_judge_options
from engine.evaluation.results_store import JUDGE, LOSSES, REPLIES, ResultStore, read_lines
from engine.llm_api.client import describe_plain_http
from engine.metrics import judge_scores, registry
from engine.metrics.registry import Tallies
from engine.options import thresholds
from engine.tasks.answer import Answer
from engine.tasks.thoughts import MARKS


def summarize(
    store: ResultStore, facts: Mapping[str, Any], request: EvaluationRequest, notes: list[str], watch: Watch
) -> dict[str, Any]:
    """Ask the judge, score every reply, and write the result, to which `facts` are added. Raises ProblemError,
    ValueError."""
    entries = [entry for _, entry in sorted(store.rows(REPLIES).items())]
    further: dict[str, Any] = {}
    if request.judge is not None and entries:
        watch("judging", 0, len(entries))
        if warning := describe_plain_http(read_judge_options(request.judge)):
            notes.append(warning)
        found = judge(
            [_make_case(entry) for entry in entries],
            read_judge_options(request.judge),
            store.folder / JUDGE,
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
    limits = [thresholds.parse_threshold(text) for text in request.thresholds or ()]
    for done, entry in enumerate(entries, 1):
        entry["scores"] = registry.score_row(tally_entry(entry, request.task), request.task)
        entry["passed"] = passes(entry["scores"], limits)
        watch("scoring", done, len(entries))
    rows = tally_rows(store.rows(LOSSES).values(), entries, request.task)
    values = registry.metrics(registry.sum_rows(rows.values()), request.task)
    result = {
        **judge_thresholds(values, request.thresholds or []),
        **facts,
        "task": request.task,
        "replies": len(entries),
        "notes": list(dict.fromkeys(notes)),
        "directory": str(store.folder),
        **further,
    }
    store.finish(entries, result)
    return result


def judge_thresholds(metrics: Mapping[str, float], limits: list[str]) -> dict[str, Any]:
    """`metrics`, `passed`, and each threshold with its value. Raises ValueError."""
    verdicts = thresholds.check_thresholds(limits, {f"eval/{name}": value for name, value in metrics.items()})
    return {"metrics": dict(metrics), **describe_verdicts(verdicts)}


def describe_verdicts(verdicts: Sequence[thresholds.Verdict]) -> dict[str, Any]:
    """`passed`, and each threshold with its value."""
    return {
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
    """Whether one reply passes the thresholds on its scores; without any, whether it fits its task's schema; else
    None."""
    relevant = [each for each in limits if each.name.removeprefix("eval/") in scores]
    if relevant:
        return all(each.is_met(scores[each.name.removeprefix("eval/")]) for each in relevant)
    return scores["schema_validity"] == 1 if "schema_validity" in scores else None


def _make_case(entry: Mapping[str, Any]) -> Case:
    answer = read_answer(entry)
    return Case(entry["row"], prompt_text(entry), answer.reply, answer.reference)


def prompt_text(entry: Mapping[str, Any]) -> str:
    """The last turn of the prompt."""
    asked = entry.get("asked")
    return str(asked[-1]["content"]) if isinstance(asked, list) and asked else str(asked or "")


def read_answer(entry: Mapping[str, Any]) -> Answer:
    """The answer of a line of `replies.jsonl`, without thinking."""
    answer = Answer(
        entry["reply"], entry.get("reference"), entry.get("tokens"), entry.get("stopped"), entry.get("seconds")
    )
    if "marks" in entry:
        answer = answer._replace(marks=(tuple(entry["marks"]), *MARKS))
    return answer.without_thinking()


def tally_entry(entry: Mapping[str, Any], task: str | None) -> Tallies:
    """The tallies of a line of `replies.jsonl`. Raises ValueError, naming its row, for a reference that is no answer to
    the task."""
    try:
        found = registry.tally_answer(read_answer(entry), task)
    except ValueError as error:
        raise ValueError(f"the reference of row {entry['row'] + 1} {error}")
    if "judge" in entry:
        found["judge"] = judge_scores.tally(entry["judge"])
    return found


def tally_rows(
    losses: Iterable[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]], task: str | None
) -> dict[int, Tallies]:
    """The tallies of each row, from the lines of `losses.jsonl` and `replies.jsonl`."""
    found: dict[int, Tallies] = {}
    for loss in losses:
        measure = "preferences" if "pairs" in loss else "tokens"
        found.setdefault(loss["row"], {})[measure] = {name: value for name, value in loss.items() if name != "row"}
    for entry in entries:
        found.setdefault(entry["row"], {}).update(tally_entry(entry, task))
    return found


def read_tallies(folder: Path, task: str | None) -> dict[int, Tallies]:
    """`tally_rows` of an evaluation's folder."""
    return tally_rows(read_lines(folder / LOSSES), read_lines(folder / REPLIES), task)
