"""Evaluations as their screen shows them: the metrics, the best values, and differences beyond noise. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.formatting import counted, format_number

MUTED = "$text-muted"
BEST = "★"
SETTINGS = {"data": str, "task": str, "rows": int, "samples": int, "max_new_tokens": int, "constrained": bool}
"""Settings of an evaluation that is started from the screen, by the worker's names."""

Evaluation = Mapping[str, Any]


def metric_names(evaluations: Sequence[Evaluation]) -> list[str]:
    """The metrics of all evaluations, those with a direction first. Metrics of parts (`triples_f1.born_in`) are left
    out."""
    names = dict.fromkeys(name for each in evaluations for name in each["metrics"] if "." not in name)
    return sorted(names, key=lambda name: not any(each["directions"].get(name) for each in evaluations))


def best_values(evaluations: Sequence[Evaluation]) -> set[tuple[int, str]]:
    """Index and metric of each value that is the best among evaluations on the same rows. A metric with one value in
    all has no best."""
    found: set[tuple[int, str]] = set()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, each in enumerate(evaluations):
        groups.setdefault((each["data"], each["sha256"], each["task"]), []).append(at)
    for places in groups.values():
        for name in metric_names(evaluations):
            sign = next((each["directions"][name] for each in evaluations if name in each["directions"]), 0)
            values = {
                at: sign * evaluations[at]["metrics"][name] for at in places if name in evaluations[at]["metrics"]
            }
            if sign and len(set(values.values())) > 1:
                top = max(values.values())
                found |= {(at, name) for at, value in values.items() if value == top}
    return found


def origin_name(evaluation: Evaluation) -> str:
    return "train" if evaluation["origin"] == "training" else "eval"


def pass_mark(evaluation: Evaluation) -> Content:
    """A mark for whether the thresholds were reached; a dash when there are none."""
    if evaluation["state"] == "going":
        return Content.styled("…", MUTED)
    if not evaluation["thresholds"] or evaluation["passed"] is None:
        return Content.styled("–", MUTED)
    return Content.styled("✓", "$success") if evaluation["passed"] else Content.styled("✗", "$error")


def evaluation_title(evaluation: Evaluation) -> str:
    return tr("step {step:,} ({origin_name})", step=evaluation["step"], origin_name=origin_name(evaluation))


def describe_evaluation(evaluation: Evaluation, width: int) -> Content:
    """An evaluation's details below the table: its rows, thresholds, notes and all metrics."""
    source = f"{evaluation['data']} · {counted(evaluation['replies'], 'reply')}"
    source += tr(" of {rows} rows", rows=evaluation["rows"]) if evaluation["rows"] > evaluation["replies"] else ""
    source += tr(" · task {task}", task=evaluation["task"]) if evaluation["task"] else ""
    head = Content.assemble((evaluation_title(evaluation), "bold $accent"), (f"  {source}", MUTED))
    lines = [head]
    if evaluation["state"] == "going":
        lines.append(Content.styled(tr("not finished: n with the same settings continues it"), "$warning"))
    for each in evaluation["thresholds"]:
        mark, colour = ("✓", "$success") if each["passed"] else ("✗", "$error")
        lines.append(Content.assemble((f"{mark} ", colour), each["text"]))
    lines += [Content.styled(note, "$warning") for note in evaluation["notes"]]
    figures = [
        Content.assemble((f"{name} ", MUTED), format_number(value)) for name, value in evaluation["metrics"].items()
    ]
    return Content("\n").join([*lines, *lay_out(figures, width)])


def lay_out(figures: Sequence[Content], width: int) -> list[Content]:
    """The figures in as many columns of equal width as fit."""
    if not figures:
        return []
    cell = max(each.cell_length for each in figures) + 2
    across = max(1, width // cell)
    rows = [figures[start : start + across] for start in range(0, len(figures), across)]
    return [Content("").join(each.pad_right(cell - each.cell_length) for each in row) for row in rows]


VERDICTS = {
    "better": ("▲", "bold $success"),
    "worse": ("▼", "bold $error"),
    "differs": ("◆", "bold"),
    "noise": ("≈", MUTED),
}
"""Verdict -> mark and style."""


def judge_difference(each: Mapping[str, Any]) -> str:
    """The verdict on a difference: one of `VERDICTS`."""
    if each["better"]:
        return "better" if each["better"] > 0 else "worse"
    return "differs" if each["beyond_noise"] else "noise"


def compare_evaluations(result: Mapping[str, Any], first: str, second: str, width: int) -> Content:
    """A table of both evaluations: each metric, the difference with its interval, and whether it is beyond noise."""
    rows = []
    for name, each in result["differences"].items():
        sign = "+" if each["difference"] > 0 else ""
        interval = f"{format_number(each['low'])} … {format_number(each['high'])}"
        rows.append(
            (
                name,
                format_number(each["first"]),
                format_number(each["second"]),
                sign + format_number(each["difference"]),
                interval,
            )
        )
    heads = ("", first, second, "change", tr("95 % interval"))
    widths = [max(cell_len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    words = width >= sum(widths) + 2 * len(widths) + 2 + len("differs")
    widths[0] = min(widths[0], width - sum(widths[1:]) - 2 * len(widths) - 1)
    lines = [
        Content.styled(
            "   " + "  ".join(f"{text:>{room}}" for text, room in zip(heads, widths, strict=True)), "bold $accent"
        )
    ]
    for (name, *cells), each in zip(rows, result["differences"].values(), strict=True):
        word = judge_difference(each)
        mark, style = VERDICTS[word]
        texts = [f"{_cut(name, widths[0]):<{widths[0]}}"]
        texts += [f"{text:>{room}}" for text, room in zip(cells, widths[1:], strict=True)]
        lines.append(Content.assemble((f"{mark}  ", style), "  ".join(texts), (f"  {word}" if words else "", style)))
    legend = "  ".join(f"{mark} {word}" for word, (mark, _) in VERDICTS.items())
    foot = tr(
        "{legend}. Paired bootstrap over the {compared_rows} rows that both measured, {resamples} "
        "resamples: noise is a difference whose interval contains 0.",
        legend=legend,
        compared_rows=result["compared_rows"],
        resamples=result["resamples"],
    )
    return Content("\n").join([*lines, Content(""), Content.styled(foot, MUTED)])


def common_prefix_length(texts: Sequence[str]) -> int:
    """The length of the common beginning of all texts, in whole words: the prompt that a task writes before each
    question."""
    if len(texts) < 2:
        return 0
    first, last = min(texts), max(texts)
    common = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    return max(first.rfind(blank, 0, common) + 1 for blank in " \n")


def parse_settings(text: str) -> dict[str, Any]:
    """The worker's settings from text like `samples=32 data="my rows.jsonl"`. Raises ValueError with a message for the
    user."""
    found: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(tr("cannot parse this: {error}", error=error))
    for word in words:
        name, equals, value = word.partition("=")
        if name not in SETTINGS or (not equals and SETTINGS[name] is not bool):
            raise ValueError(
                tr("{word}: write NAME=VALUE with one of {SETTINGS}", word=word, SETTINGS=", ".join(SETTINGS))
            )
        try:
            found[name] = value != "false" if SETTINGS[name] is bool else SETTINGS[name](value)
        except ValueError:
            raise ValueError(tr("{name} must be a number, not {value!r}", name=name, value=value))
    return found


def _cut(text: str, cells: int) -> str:
    return text if len(text) <= cells else text[: cells - 1] + "…"
