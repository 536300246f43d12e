"""The columns of the list of runs: what each shows, and which of them fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.formatting import (
    STATES,
    counted,
    format_age,
    format_duration,
    format_number,
    format_percent,
    pad_left,
)
from cockpit.state.run_groups import RunGroup
from cockpit.widgets.canvas import RUN_COLOURS
from cockpit.widgets.chart_raster import RUN_MARKS
from engine.protocol.messages import Run


@dataclass(frozen=True)
class Look:
    """What the rows show beside the runs: those that are marked for the chart, those that are chosen, the cells for an
    id, whether there is little room, and whether the background is dark."""

    marked: Sequence[str] = ()
    chosen: frozenset[str] = frozenset()
    room: int = 12
    narrow: bool = False
    dark: bool = True


@dataclass(frozen=True)
class Column:
    """`width` in cells; 0 takes what is left. `sort` is the order that a click on its heading chooses."""

    width: int
    write: Callable[[Run, Look], Content]
    meaning: str
    sort: str = ""


def _mark(run: Run, look: Look) -> Content:
    at = look.marked.index(run.id) if run.id in look.marked else -1
    chart = Content.styled(RUN_MARKS[at], RUN_COLOURS[at][not look.dark]) if at >= 0 else Content(" ")
    chosen = Content.styled("✔", "bold $accent") if run.id in look.chosen else None
    return chosen or (Content.styled("★", "$accent") if run.pinned and at < 0 else chart)


def _state(run: Run, look: Look) -> Content:
    mark, colour = STATES.get(run.state, ("·", "$text"))
    return Content.styled(
        f"{mark} {tr(run.state)} {run.position or ''}{'↑' if run.position and run.priority > 0 else ''}"
        f"{'↓' if run.position and run.priority < 0 else ''}".rstrip(),
        colour,
    )


def _progress(run: Run, look: Look) -> Content:
    share = run.step / run.max_steps if run.max_steps else 0.0
    length = 6
    full = min(length, round(share * length))
    last = f"{run.max_steps:,}" if run.max_steps else "?"
    steps = format_percent(share) if look.narrow else f"{run.step:,}/{last}"
    return Content.assemble(("━" * full, "$accent"), ("─" * (length - full), "$primary 50%"), " ", steps)


def _metric(name: str) -> Callable[[Run, Look], Content]:
    return lambda run, look: Content(format_number(run.metrics[name]) if name in run.metrics else "–")


def _text(read: Callable[[Run], str], width: int) -> Callable[[Run, Look], Content]:
    return lambda run, look: Content(cut(read(run), width))


def _age(moment: float) -> Content:
    return Content(pad_left(format_age(moment), 6))


def _spent(run: Run) -> str:
    return format_duration((run.ended or time.time()) - run.started) if run.started else "–"


COLUMNS: dict[str, Column] = {
    "state": Column(11, _state, "state, and the place in the queue", "state"),
    "run": Column(0, lambda run, look: Content(cut_middle(run.id, look.room)), "id", "name"),
    "progress": Column(20, _progress, "steps done, of how many"),
    "loss": Column(6, _metric("train/loss"), "latest training loss", "loss"),
    "eval": Column(6, _metric("eval/loss"), "latest loss of the held-out rows", "eval"),
    "lr": Column(7, lambda run, look: Content(format_number(run.learning_rate) if run.learning_rate else "–"),
                 "learning rate of the profile", "lr"),
    "tags": Column(16, _text(lambda run: " ".join(run.tags), 16), "your tags"),
    "group": Column(16, _text(lambda run: run.group, 16), "the group that it is in"),
    "note": Column(24, _text(lambda run: " ".join(run.note.split()), 24), "the beginning of your note"),
    "base": Column(21, _text(lambda run: run.base.rsplit("/", 1)[-1], 21), "base model"),
    "method": Column(12, _text(lambda run: " ".join(filter(None, (run.method, run.adapter))), 12), "method, adapter"),
    "time": Column(8, _text(_spent, 8), "how long the attempt has run, or ran"),
    "host": Column(12, _text(lambda run: run.host, 12), "the host that it belongs to"),
    "age": Column(6, lambda run, look: _age(run.created), "since it was submitted", "newest"),
}  # fmt: skip
USUAL = ["state", "run", "progress", "loss", "eval", "base", "age"]
NARROW = {"state": 11, "progress": 12}
"""Widths where there is little room."""
FIRST_TO_GO = ("host", "group", "note", "method", "base", "lr", "time", "tags", "eval")
"""Columns that are left out first where there is too little room."""
SHORTEST = 12
"""Cells that the id has at least."""


def fit_columns(chosen: Sequence[str], width: int, narrow: bool, longest: int) -> tuple[dict[str, int], int]:
    """The columns that fit into `width` cells with their widths, and the cells for an id of at most `longest`."""
    names = [name for name in chosen if name in COLUMNS] or list(USUAL)
    if "run" not in names:
        names.insert(0, "run")
    leaving = [name for name in FIRST_TO_GO if name in names]
    while True:
        widths = {name: (NARROW.get(name, 0) if narrow else 0) or COLUMNS[name].width for name in names}
        left = width - sum(cells + 2 for cells in widths.values()) - 3 - 2
        if left >= min(longest, 30 if leaving else SHORTEST) or not leaving:
            return widths, max(SHORTEST, min(left, longest))
        names.remove(leaving.pop(0))


INDENT = 2
"""Cells by which a run is moved in below the heading of its group."""


def write_row(run: Run, names: Iterable[str], look: Look, *, indent: bool = False) -> list[Content]:
    """The cells of a run."""
    cells = [_mark(run, look), *(COLUMNS[name].write(run, look) for name in names)]
    if indent and "run" in names:
        at = list(names).index("run") + 1
        cells[at] = Content(" " * INDENT + cut_middle(run.id, look.room - INDENT))
    return cells


def write_group(group: RunGroup, names: Iterable[str], look: Look) -> list[Content]:
    """The cells of a group's heading: how many runs are in which state, and the lowest losses."""
    chosen = bool(group.runs) and all(run.id in look.chosen for run in group.runs)
    fold = Content.styled("▸" if group.folded else "▾", "bold $accent")
    return [
        Content.styled("✔", "bold $accent") if chosen else fold,
        *(_group_cell(group, name, look) for name in names),
    ]


def _group_cell(group: RunGroup, name: str, look: Look) -> Content:
    match name:
        case "state":
            return Content.styled(counted(len(group.runs), "run"), "bold $accent")
        case "run":
            states = group.count_states()
            marks = "  ".join(
                f"{STATES.get(state, ('·', ''))[0]} {states[state]}" for state in STATES if state in states
            )
            if cell_len(group.name) + 2 + cell_len(marks) > look.room:
                return Content.styled(cut(group.name, look.room), "bold $foreground")
            return Content.assemble((group.name, "bold $foreground"), (f"  {marks}", "$foreground-muted"))
        case "progress":
            done, last = sum(run.step for run in group.runs), sum(run.max_steps for run in group.runs)
            return _progress(Run(id="", step=done, max_steps=last), look)
        case "loss" | "eval":
            lowest = group.lowest({"loss": "train/loss", "eval": "eval/loss"}[name])
            return Content("–" if lowest is None else format_number(lowest))
        case "age":
            return _age(max(run.created for run in group.runs))
    return Content("")


def cut(text: str, cells: int) -> str:
    """The text cut to at most `cells` cells; a wide character takes two."""
    text = text[: 4 * cells + 1]  # a note may be long, and each row is written anew every second
    while cell_len(text) > cells:
        text = text[:-2] + "…"
    return text


def cut_middle(text: str, cells: int) -> str:
    """The text with its beginning and its end in at most `cells` cells. Ids of the runs of one profile differ at the
    end."""
    if cell_len(text) <= cells:
        return text
    end = ""
    for character in reversed(text[-cells:]):
        if cell_len(character + end) > cells // 2:
            break
        end = character + end
    return f"{cut(text, cells - cell_len(end)).removesuffix('…')}…{end}"
