"""Evaluations as the screen tells of them: which metrics, which is best, what is beyond noise. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from textual.content import Content

from cockpit.state.formatting import number

MUTED = "$text-muted"
BEST = "★"
SETTINGS = {"data": str, "task": str, "rows": int, "samples": int, "max_new_tokens": int, "constrained": bool}
"""What may be said of an evaluation that is started from the screen, by the worker's names."""

Evaluation = Mapping[str, Any]


def columns(evaluations: Sequence[Evaluation]) -> list[str]:
    """Metrics that some evaluation has, in their order; those of parts (`triples_f1.born_in`) stand below the table."""
    names = dict.fromkeys(name for each in evaluations for name in each["metrics"] if "." not in name)
    return sorted(names, key=lambda name: not any(each["directions"].get(name) for each in evaluations))


def best(evaluations: Sequence[Evaluation]) -> set[tuple[int, str]]:
    """Place and metric of what no other evaluation on the same rows has better. A metric that is the same in all has no best."""
    found: set[tuple[int, str]] = set()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, each in enumerate(evaluations):
        groups.setdefault((each["data"], each["sha256"], each["task"]), []).append(at)
    for places in groups.values():
        for name in columns(evaluations):
            sign = next((each["directions"][name] for each in evaluations if name in each["directions"]), 0)
            values = {
                at: sign * evaluations[at]["metrics"][name] for at in places if name in evaluations[at]["metrics"]
            }
            if sign and len(set(values.values())) > 1:
                top = max(values.values())
                found |= {(at, name) for at, value in values.items() if value == top}
    return found


def origin(evaluation: Evaluation) -> str:
    return "train" if evaluation["origin"] == "training" else "eval"


def passed(evaluation: Evaluation) -> Content:
    """Whether the thresholds hold, where there are any."""
    if evaluation["state"] == "going":
        return Content.styled("…", MUTED)
    if not evaluation["thresholds"] or evaluation["passed"] is None:
        return Content.styled("–", MUTED)
    return Content.styled("✓", "$success") if evaluation["passed"] else Content.styled("✗", "$error")


def title(evaluation: Evaluation) -> str:
    return f"step {evaluation['step']:,} ({origin(evaluation)})"


def about(evaluation: Evaluation, width: int) -> Content:
    """All of an evaluation beside its row in the table: where, thresholds, notes, every metric."""
    where = f"{evaluation['data']} · {evaluation['replies']} replies"
    where += f" of {evaluation['rows']} rows" if evaluation["rows"] > evaluation["replies"] else ""
    where += f" · task {evaluation['task']}" if evaluation["task"] else ""
    head = Content.assemble((title(evaluation), "bold $accent"), (f"  {where}", MUTED))
    lines = [head]
    if evaluation["state"] == "going":
        lines.append(Content.styled("not finished: the same evaluation, started again with n, goes on", "$warning"))
    for each in evaluation["thresholds"]:
        mark, colour = ("✓", "$success") if each["passed"] else ("✗", "$error")
        lines.append(Content.assemble((f"{mark} ", colour), each["text"]))
    lines += [Content.styled(note, "$warning") for note in evaluation["notes"]]
    figures = [Content.assemble((f"{name} ", MUTED), number(value)) for name, value in evaluation["metrics"].items()]
    return Content("\n").join([*lines, *flowed(figures, width)])


def flowed(figures: Sequence[Content], width: int) -> list[Content]:
    """As many beside each other as fit, in columns of equal width."""
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
"""Word -> mark and style."""


def verdict(each: Mapping[str, Any]) -> str:
    """What a difference is, in a word."""
    if each["better"]:
        return "better" if each["better"] > 0 else "worse"
    return "differs" if each["beyond_noise"] else "noise"


def comparison(told: Mapping[str, Any], first: str, second: str, width: int) -> Content:
    """Each metric of both, the difference with its interval, and whether that is more than noise."""
    rows = []
    for name, each in told["differences"].items():
        sign = "+" if each["difference"] > 0 else ""
        interval = f"{number(each['low'])} … {number(each['high'])}"
        rows.append((name, number(each["first"]), number(each["second"]), sign + number(each["difference"]), interval))
    heads = ("", first, second, "change", "95 % interval")
    widths = [max(cell_len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    words = width >= sum(widths) + 2 * len(widths) + 2 + len("differs")
    widths[0] = min(widths[0], width - sum(widths[1:]) - 2 * len(widths) - 1)
    lines = [
        Content.styled(
            "   " + "  ".join(f"{text:>{room}}" for text, room in zip(heads, widths, strict=True)), "bold $accent"
        )
    ]
    for (name, *cells), each in zip(rows, told["differences"].values(), strict=True):
        word = verdict(each)
        mark, style = VERDICTS[word]
        texts = [f"{_cut(name, widths[0]):<{widths[0]}}"]
        texts += [f"{text:>{room}}" for text, room in zip(cells, widths[1:], strict=True)]
        lines.append(Content.assemble((f"{mark}  ", style), "  ".join(texts), (f"  {word}" if words else "", style)))
    legend = "  ".join(f"{mark} {word}" for word, (mark, _) in VERDICTS.items())
    foot = (
        f"{legend}. Paired bootstrap over the {told['compared_rows']} rows that both were measured on, {told['resamples']} resamples: "
        "noise is a difference whose interval holds 0."
    )
    return Content("\n").join([*lines, Content(""), Content.styled(foot, MUTED)])


def shared(texts: Sequence[str]) -> int:
    """Characters that all texts begin with, whole words: what a task writes around each question says nothing about one of them."""
    if len(texts) < 2:
        return 0
    first, last = min(texts), max(texts)
    common = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    return max(first.rfind(blank, 0, common) + 1 for blank in " \n")


def settings(text: str) -> dict[str, Any]:
    """`samples=32 data="my rows.jsonl"` as the worker takes it. Raises ValueError, in words."""
    found: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"cannot be read: {error}")
    for word in words:
        name, equals, value = word.partition("=")
        if name not in SETTINGS or (not equals and SETTINGS[name] is not bool):
            raise ValueError(f"{word}: write NAME=VALUE with one of {', '.join(SETTINGS)}")
        try:
            found[name] = value != "false" if SETTINGS[name] is bool else SETTINGS[name](value)
        except ValueError:
            raise ValueError(f"{name} is a number, not {value!r}")
    return found


def _cut(text: str, cells: int) -> str:
    return text if len(text) <= cells else text[: cells - 1] + "…"
