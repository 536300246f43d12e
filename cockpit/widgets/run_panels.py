"""The panels of the dashboard. Each writes to the terminal only when its text has changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from textual import events
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.state.app_state import RunHistory
from cockpit.state.formatting import (
    format_count,
    format_duration,
    format_epochs,
    format_number,
    format_percent,
    format_state,
)
from cockpit.state.remaining import list_following, remaining_seconds
from cockpit.state.run_history import Threshold, active_warnings, meets_threshold, pause_advice, thresholds
from cockpit.widgets.line import MUTED, Line, join_fitting, labelled
from engine.protocol.messages import Problem, Run
from engine.protocol.states import LIVE, PAUSED

BAR = ("━", "╺", "─")
COMPARISONS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}


# ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────────


class RunHeader(Vertical):
    """Three lines that repaint separately: name and state, progress, speed."""

    DEFAULT_CSS = "RunHeader { height: 3; padding: 0 1; background: $surface; } RunHeader Line { height: 1; }"

    def __init__(self) -> None:
        self._lines = [Line(), Line(), Line()]
        super().__init__(*self._lines, id="header")

    def show_run(self, run: Run, history: RunHistory, place: str, waiting: Sequence[str] = ()) -> None:
        """`waiting`: commands that the run has not taken yet."""
        width = self.content_size.width or self.app.size.width - 2
        contents = _title(run, place, width, waiting), _progress(run, width), _speed(run, history, width)
        for line, content in zip(self._lines, contents, strict=True):
            line.show(content)


def _title(run: Run, place: str, width: int, waiting: Sequence[str] = ()) -> Content:
    phase = run.phase if run.state in LIVE and run.phase not in ("", run.state, "training") else ""
    if run.state == "queued" and run.position:
        priority = tr(", priority {priority}", priority=run.priority) if run.priority else ""
        phase = tr("place {position} in the queue{priority}", position=run.position, priority=priority)
    if run.state == PAUSED:
        phase = ""  # it repeats the reason
    follows = (
        tr(
            "{phase}; {waiting} follow{plural}",
            phase=phase or "this step",
            waiting=" and ".join(waiting),
            plural="s" * (len(waiting) == 1),
        )
        if waiting
        else ""
    )
    notes = ((tr_engine(run.reason), "$warning"), ("" if waiting else phase, "$secondary"), (follows, "bold $warning"))
    told = Content.assemble(*((f"   {note}" if note else "", colour) for note, colour in notes))
    right = Content.styled(place, MUTED)
    room = max(0, width - right.cell_length - 2)
    left = Content.assemble(format_state(run.state), "  ", (run.name or run.id, "bold $text"))
    if run.name not in ("", run.id):
        both = Content.assemble(left, "  ", (run.id, MUTED))
        if run.id.startswith(run.name) and both.cell_length + told.cell_length > room:  # the id says the name, too
            both = Content.assemble(format_state(run.state), "  ", (run.id, "bold $text"))
        left = both
    left = (left + told).truncate(room, ellipsis=True)
    return Content.assemble(left, " " * (width - left.cell_length - right.cell_length), right)


def _progress(run: Run, width: int) -> Content:
    share = min(1.0, run.step / run.max_steps) if run.max_steps else 0.0
    steps = (
        tr("step {step:,}/{max_steps:,}", step=run.step, max_steps=run.max_steps)
        if run.max_steps
        else tr("step {step:,}", step=run.step)
    )
    epochs = tr("  epoch {epoch:.2f}/{epochs}", epoch=run.epoch, epochs=format_epochs(run.epochs)) if run.epochs else ""
    text = f"  {format_percent(share):>5}  {steps}{epochs}"
    length = max(8, width - cell_len(text))
    halves = round(share * length * 2)
    full, half = BAR[0] * (halves // 2), BAR[1] * (halves % 2)
    rest = BAR[2] * (length - len(full) - len(half))
    colour = "$error" if run.state in ("failed", "lost") else "$accent"
    return Content.assemble((full + half, colour), (rest, "$primary 50%"), (text, "$text"))


def _speed(run: Run, history: RunHistory, width: int) -> Content:
    metrics = run.metrics
    parts = []
    if run.started:
        parts.append(labelled(tr("elapsed"), format_duration((run.ended or time.time()) - run.started)))
    left = remaining_seconds(run, history)
    if left is not None:
        then = "".join(f" + {stage}" for stage in list_following(run))
        parts.append(labelled(tr("remaining"), format_duration(left) + then))
    for name, key, write in (
        ("", "train/tokens_per_second", lambda value: tr("{value} tok/s", value=format_count(value))),
        ("", "train/samples_per_second", lambda value: tr("{value} samples/s", value=format_number(value))),
        ("loss", "train/loss", format_number),
        ("lr", "train/learning_rate", format_number),
        ("grad", "train/grad_norm", format_number),
        ("eval", "eval/loss", format_number),
    ):
        if key in metrics:
            parts.append(labelled(name, write(metrics[key])) if name else Content(write(metrics[key])))
    return join_fitting(parts, width)


# ── facts and notices ───────────────────────────────────────────────────────────────────────────────────────────


def format_table(rows: Sequence[tuple[str, str | Content]]) -> Content:
    """Names and values in two columns."""
    if not rows:
        return Content("")
    named = [(tr(name), value) for name, value in rows]
    widest = max(cell_len(name) for name, _ in named)
    lines = [
        Content.assemble(
            (f"{set_cell_size(name, widest)} ", MUTED), (value, "$text") if isinstance(value, str) else value
        )
        for name, value in named
    ]
    return Content("\n").join(lines)


def metric_rows(run: Run) -> list[tuple[str, str | Content]]:
    """The values of the small charts, for a screen without room for them."""
    names = {"train/learning_rate": tr("learning rate"), "train/grad_norm": tr("gradient norm")}
    return [(name, format_number(run.metrics[key])) for key, name in names.items() if key in run.metrics]


def fact_rows(run: Run, history: RunHistory) -> list[tuple[str, str | Content]]:
    """Facts that do not change during a run, the most important first."""
    start: dict[str, Any] = history.start or {}
    further: dict[str, Any] = start.get("facts", {})
    rows = []
    if run.parameters:
        share = run.trainable_parameters / run.parameters
        rows.append(
            (
                "trainable",
                f"{format_count(run.trainable_parameters)}/{format_count(run.parameters)} {format_percent(share)}",
            )
        )
    if run.global_batch:
        rows.append(
            (
                "batch",
                tr(
                    "{global_batch} global, {processes} rank{plural}",
                    global_batch=run.global_batch,
                    processes=run.processes,
                    plural="s"[: run.processes > 1],
                ),
            )
        )
    rows.append(memory_row(history))
    rows.append(("base", run.base.rsplit("/", 1)[-1]))
    rows.append(("method", " · ".join(part for part in (run.method, run.adapter) if part)))
    types = [str(further[key]) for key in ("dtype", "quantization", "compute_dtype") if further.get(key)]
    precision = [name for name in dict.fromkeys(types) if name != "none"]
    rows.append(("precision", " · ".join(precision)))
    if "rows" in start:
        rows.append(
            (
                "data",
                tr(
                    "{rows} rows · {trained_tokens} tok",
                    rows=format_count(start["rows"]),
                    trained_tokens=format_count(start.get("trained_tokens", 0)),
                ),
            )
        )
    rows += [(key, str(further[key])) for key in ("device", "torch") if key in further]
    return [(name, value) for name, value in rows if value]


def memory_row(history: RunHistory) -> tuple[str, str]:
    """The run's peak as it was forecast, as the rehearsal took it, and as it was in the end: of the fullest card, or
    without cards of the host. Empty before any of these is known."""
    entries = {source: history.memory[source] for source in _PEAKS if source in history.memory}
    on_card = any(entry.get("device_bytes") for entry in entries.values())
    key = "device_bytes" if on_card else "host_bytes"
    sizes = {source: entry[key] for source, entry in entries.items() if entry.get(key)}
    if not sizes:
        return "", ""
    unit, size, digits = ("GB", 1e9, 1) if max(sizes.values()) >= 1e9 else ("MB", 1e6, 0)
    written = [f"{_PEAKS[source]}{value / size:.{digits}f}" for source, value in sizes.items()]
    written[0] += f" {unit}"
    return "forecast" if "forecast" in sizes else "memory", ", ".join(written)


_PEAKS = {"forecast": "", "rehearsed": "tried ", "actual": "peak "}
"""Source of a figure of memory -> what is written before it."""


def evaluation_rows(history: RunHistory, *, short: bool = False) -> list[tuple[str, str | Content]]:
    """The last evaluation, on held-out rows or, at the end, on test rows: each metric with its value, its thresholds,
    and its change since the previous evaluation. `short` leaves out the bounds and the changes."""
    if not history.evaluations:
        return []
    values = history.evaluations[-1]["values"]
    before = history.evaluations[-2]["values"] if len(history.evaluations) > 1 else {}
    tested = any(name.startswith("test/") for name in values)  # thresholds then apply to these
    required: dict[str, list[Threshold]] = {}
    for threshold in thresholds(history):
        if threshold[0].startswith("eval/"):
            name = f"test/{threshold[0].removeprefix('eval/')}" if tested else threshold[0]
            required.setdefault(name, []).append(threshold)
    verdicts = {name: _verdict(each, values.get(name), short) for name, each in required.items()}
    room = max((verdict.cell_length for verdict in verdicts.values()), default=0)
    rows: list[tuple[str, str | Content]] = []
    for name in dict.fromkeys([*values, *required]):
        value, old, moved = values.get(name), before.get(name), ""
        if value is not None and old is not None and value != old and not short:
            moved = f" {'▲' if value > old else '▼'} {abs(value - old):.2g}"
        text = format_number(value) if value is not None else tr("not finite") if name in values else "–"
        verdict = verdicts.get(name, Content("")).pad_right(room - verdicts.get(name, Content("")).cell_length)
        rows.append((name.removeprefix("eval/").removeprefix("test/"), Content.assemble(f"{text:<6} ", verdict, moved)))
    return rows


def _verdict(required: Sequence[Threshold], value: float | None, short: bool) -> Content:
    passed = all(meets_threshold(threshold, value) for threshold in required)
    bounds = ",".join(f"{COMPARISONS[comparison]}{bound:g}" for _, comparison, bound in required)
    mark = Content.styled("✓" if passed else "✗", "bold $success" if passed else "bold $error")
    return mark if short else Content.assemble(mark, f" {bounds}")


def loss_bounds(history: RunHistory) -> tuple[tuple[float, str], ...]:
    """The thresholds that are lines on the loss chart: value and label."""
    return tuple(
        (bound, f"{name.partition('/')[0]} {COMPARISONS[comparison]} {bound:g}")
        for name, comparison, bound in thresholds(history)
        if name in ("eval/loss", "train/loss")
    )


class Side(Vertical):
    """What stands beside the loss."""

    CHARTED = 17
    """Lines from which the small charts have three rows each, and the facts some."""

    class Arranged(Message):
        """It has another size. `charts`: the small charts have room."""

        def __init__(self, charts: bool) -> None:
            super().__init__()
            self.charts = charts

    def on_resize(self, event: events.Resize) -> None:
        self.post_message(self.Arranged(event.size.height >= self.CHARTED))


class Notice(Static):
    """A problem with its cause and hint, else why the run is paused, else the newest warning, else what makes it slow.
    Hidden without any of them."""

    DEFAULT_CSS = """
    Notice {
        height: auto; max-height: 4; padding: 0 1; border-left: thick $warning; background: $surface; display: none;
    }
    Notice.-problem { max-height: 7; border-left: thick $error; }
    """

    _plain = ""

    def show(self, run: Run, problem: Problem | None, history: RunHistory) -> None:
        self.set_class(problem is not None, "-problem")
        text = Content("\n").join(self._lines(run, problem, history))
        if text.plain != self._plain:
            self._plain = text.plain
            self.update(text)
        self.display = bool(text)

    def _lines(self, run: Run, problem: Problem | None, history: RunHistory) -> list[Content]:
        if problem is not None:
            parts = (
                (problem.title, "bold $error"),
                (problem.cause, "$text"),
                (_hint(tr_engine(problem.hint)), "$accent"),
            )
            return [Content.styled(tr_engine(line), style) for line, style in parts if line]
        reason, keys = pause_advice(run, history)
        if reason:
            return [Content.styled(reason, "bold $warning"), Content.styled(_hint(keys), "$accent")]
        warnings = active_warnings(run, history)
        if not warnings:
            return _advice(run)
        count = tr("{warnings} warnings, the last: ", warnings=len(warnings)) if len(warnings) > 1 else ""
        message, hint = count + tr_engine(warnings[-1]["message"]), _hint(tr_engine(warnings[-1].get("hint", "")))
        lines, width = (2 if self.screen.has_class("-low") else 4), self.app.size.width - 10
        # What has no room is one key away. Words are wrapped, so a line takes a little less than its width.
        rest = Content.styled(tr(" … w shows the rest"), "bold $accent")
        if len(message) + len(hint) + 2 <= width:
            return [Content.assemble((message, "$warning"), "  ", (hint, "$text"))]
        needed = -(-len(message) // width) + -(-len(hint) // width)
        if needed <= lines:
            return [Content.styled(line, style) for line, style in ((message, "$warning"), (hint, "$text")) if line]
        if -(-len(message) // width) < lines:
            return [Content.styled(message, "$warning"), _cut(hint, width - rest.cell_length, "$text") + rest]
        return [_cut(message, lines * width - rest.cell_length, "$warning") + rest]


def _advice(run: Run) -> list[Content]:
    """What stands out in the split of a step's time."""
    from engine.config.diagnosis import list_advice

    found = list_advice(run.metrics) if run.state == "running" else []
    if not found:
        return []
    first = found[0]
    return [
        Content.assemble(
            (tr_engine(first.message), "bold $warning"),
            (f": {tr_engine(first.hint)}", "$text"),
            (tr("  d says more"), MUTED),
        )
    ]


def _hint(text: str) -> str:
    return f"→ {text}" if text else ""


def _cut(text: str, cells: int, style: str) -> Content:
    return Content.styled(text, style).truncate(max(1, cells))
