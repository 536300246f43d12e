"""The dashboard's panels. Each is fed through `show` and writes to the terminal only when its text changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from cockpit.state.app_state import RunTold
from cockpit.state.formatting import big, duration, number, percent, state_mark
from cockpit.state.run_history import Threshold, advice, holds, standing, thresholds
from cockpit.widgets.line import MUTED, Line, figure, joined
from engine.protocol.messages import Problem, Run
from engine.protocol.states import LIVE

BAR = ("━", "╺", "─")
COMPARISONS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}


# ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────────


class RunHeader(Vertical):
    """Three lines: what the run is and does, how far it is, how fast it goes. Each repaints by itself."""

    DEFAULT_CSS = "RunHeader { height: 3; padding: 0 1; background: $surface; } RunHeader Line { height: 1; }"

    def __init__(self) -> None:
        self._lines = [Line(), Line(), Line()]
        super().__init__(*self._lines, id="header")

    def show_run(self, run: Run, told: RunTold, place: str) -> None:
        width = self.content_size.width or self.app.size.width - 2
        contents = _title(run, place, width), _progress(run, width), _pace(run, told, width)
        for line, content in zip(self._lines, contents, strict=True):
            line.show(content)


def _title(run: Run, place: str, width: int) -> Content:
    doing = run.phase if run.state in LIVE and run.phase not in ("", run.state, "training") else ""
    if run.state == "queued" and run.position:
        doing = f"place {run.position} in the queue"
    left = Content.assemble(state_mark(run.state), "  ", (run.name or run.id, "bold $text"))
    if run.name not in ("", run.id):
        left = Content.assemble(left, "  ", (run.id, MUTED))
    for note, colour in ((run.reason, "$warning"), (doing, "$secondary")):
        left = Content.assemble(left, (f"   {note}" if note else "", colour))
    right = Content.styled(place, MUTED)
    left = left.truncate(max(0, width - right.cell_length - 2), ellipsis=True)
    return Content.assemble(left, " " * (width - left.cell_length - right.cell_length), right)


def _progress(run: Run, width: int) -> Content:
    share = min(1.0, run.step / run.max_steps) if run.max_steps else 0.0
    steps = f"step {run.step:,}/{run.max_steps:,}" if run.max_steps else f"step {run.step:,}"
    epochs = f"  epoch {run.epoch:.2f}/{run.epochs:g}" if run.epochs else ""
    text = f"  {percent(share):>5}  {steps}{epochs}"
    length = max(8, width - len(text))
    halves = round(share * length * 2)
    full, half = BAR[0] * (halves // 2), BAR[1] * (halves % 2)
    rest = BAR[2] * (length - len(full) - len(half))
    colour = "$error" if run.state in ("failed", "lost") else "$accent"
    return Content.assemble((full + half, colour), (rest, "$primary 50%"), (text, "$text"))


def _pace(run: Run, told: RunTold, width: int) -> Content:
    metrics = run.metrics
    parts = []
    if run.started:
        parts.append(figure("elapsed", duration((run.ended or time.time()) - run.started)))
    left = remaining(run, told)
    if left is not None:
        parts.append(figure("remaining", duration(left)))
    for name, key, write in (
        ("", "train/tokens_per_second", lambda value: f"{big(value)} tok/s"),
        ("", "train/samples_per_second", lambda value: f"{number(value)} samples/s"),
        ("loss", "train/loss", number),
        ("lr", "train/learning_rate", number),
        ("grad", "train/grad_norm", number),
        ("eval", "eval/loss", number),
    ):
        if key in metrics:
            parts.append(figure(name, write(metrics[key])) if name else Content(write(metrics[key])))
    return joined(parts, width)


def remaining(run: Run, told: RunTold) -> float | None:
    """Seconds until the last step at the pace of the steps (else since the attempt's first); None when nothing can be said."""
    if run.state != "running" or not told.start or not run.max_steps:
        return None
    if pace := run.metrics.get("train/step_seconds"):
        return pace * (run.max_steps - run.step)
    done = run.step - told.start.get("step", 0)
    spent = time.time() - told.start.get("time", time.time())
    return spent / done * (run.max_steps - run.step) if done > 0 else None


# ── facts and notices ───────────────────────────────────────────────────────────────────────────────────────────


def table(rows: Sequence[tuple[str, str | Content]]) -> Content:
    """Names and values in two columns."""
    if not rows:
        return Content("")
    widest = max(len(name) for name, _ in rows)
    lines = [
        Content.assemble((f"{name:<{widest}} ", MUTED), (value, "$text") if isinstance(value, str) else value)
        for name, value in rows
    ]
    return Content("\n").join(lines)


def present(run: Run) -> list[tuple[str, str | Content]]:
    """What the small charts show, in figures, for a screen without room for them."""
    names = {"train/learning_rate": "learning rate", "train/grad_norm": "gradient norm"}
    return [(name, number(run.metrics[key])) for key, name in names.items() if key in run.metrics]


def facts(run: Run, told: RunTold) -> list[tuple[str, str | Content]]:
    """What does not change while a run runs, the most asked first."""
    start: dict[str, Any] = told.start or {}
    further: dict[str, Any] = start.get("facts", {})
    rows = []
    if run.parameters:
        share = run.trainable_parameters / run.parameters
        rows.append(("trainable", f"{big(run.trainable_parameters)}/{big(run.parameters)} {percent(share)}"))
    if run.global_batch:
        rows.append(("batch", f"{run.global_batch} global, {run.processes} rank{'s'[: run.processes > 1]}"))
    rows.append(("base", run.base.rsplit("/", 1)[-1]))
    rows.append(("method", " · ".join(part for part in (run.method, run.adapter) if part)))
    types = [str(further[key]) for key in ("dtype", "quantization", "compute_dtype") if further.get(key)]
    numbers = [name for name in dict.fromkeys(types) if name != "none"]
    rows.append(("numbers", " · ".join(numbers)))
    if "rows" in start:
        rows.append(("data", f"{big(start['rows'])} rows · {big(start.get('trained_tokens', 0))} tok"))
    rows += [(key, str(further[key])) for key in ("device", "torch") if key in further]
    return [(name, value) for name, value in rows if value]


def evaluation(told: RunTold, *, short: bool = False) -> list[tuple[str, str | Content]]:
    """The last evaluation, of held-out rows or at the end of test rows: each metric's name; its value, whether that is what it must be, and how it moved since the one before.
    `short` leaves out the bounds and the moves."""
    if not told.evaluations:
        return []
    values = told.evaluations[-1]["values"]
    before = told.evaluations[-2]["values"] if len(told.evaluations) > 1 else {}
    tested = any(name.startswith("test/") for name in values)  # then thresholds are about these
    wanted: dict[str, list[Threshold]] = {}
    for threshold in thresholds(told):
        if threshold[0].startswith("eval/"):
            name = f"test/{threshold[0].removeprefix('eval/')}" if tested else threshold[0]
            wanted.setdefault(name, []).append(threshold)
    verdicts = {name: _verdict(each, values.get(name), short) for name, each in wanted.items()}
    room = max((verdict.cell_length for verdict in verdicts.values()), default=0)
    rows: list[tuple[str, str | Content]] = []
    for name in dict.fromkeys([*values, *wanted]):
        value, old, moved = values.get(name), before.get(name), ""
        if value is not None and old is not None and value != old and not short:
            moved = f" {'▲' if value > old else '▼'} {abs(value - old):.2g}"
        said = number(value) if value is not None else "not finite" if name in values else "–"
        verdict = verdicts.get(name, Content("")).pad_right(room - verdicts.get(name, Content("")).cell_length)
        rows.append((name.removeprefix("eval/").removeprefix("test/"), Content.assemble(f"{said:<6} ", verdict, moved)))
    return rows


def _verdict(wanted: Sequence[Threshold], value: float | None, short: bool) -> Content:
    passed = all(holds(threshold, value) for threshold in wanted)
    bounds = ",".join(f"{COMPARISONS[comparison]}{bound:g}" for _, comparison, bound in wanted)
    mark = Content.styled("✓" if passed else "✗", "bold $success" if passed else "bold $error")
    return mark if short else Content.assemble(mark, f" {bounds}")


def bounds(told: RunTold) -> tuple[tuple[float, str], ...]:
    """Where the loss chart has a line, and what it says."""
    return tuple(
        (bound, f"{name.partition('/')[0]} {COMPARISONS[comparison]} {bound:g}")
        for name, comparison, bound in thresholds(told)
        if name in ("eval/loss", "train/loss")
    )


class Notice(Static):
    """What went wrong, why, and what mends it; or what a paused run waits for; or the newest warning. Hidden when there is nothing."""

    DEFAULT_CSS = """
    Notice { height: auto; max-height: 4; padding: 0 1; border-left: thick $warning; background: $surface; display: none; }
    Notice.-problem { max-height: 7; border-left: thick $error; }
    """

    _plain = ""

    def show(self, run: Run, problem: Problem | None, told: RunTold) -> None:
        self.set_class(problem is not None, "-problem")
        text = Content("\n").join(self._lines(run, problem, told))
        if text.plain != self._plain:
            self._plain = text.plain
            self.update(text)
        self.display = bool(text)

    def _lines(self, run: Run, problem: Problem | None, told: RunTold) -> list[Content]:
        if problem is not None:
            told_of = (problem.title, "bold $error"), (problem.cause, "$text"), (_hint(problem.hint), "$accent")
            return [Content.styled(line, style) for line, style in told_of if line]
        reason, keys = advice(run, told)
        if reason:
            return [Content.styled(reason, "bold $warning"), Content.styled(_hint(keys), "$accent")]
        warnings = standing(run, told)
        if not warnings:
            return []
        count = f"{len(warnings)} warnings, the last: " if len(warnings) > 1 else ""
        message, hint = count + warnings[-1]["message"], _hint(warnings[-1].get("hint", ""))
        lines, width = (2 if self.screen.has_class("-low") else 4), self.app.size.width - 10
        # What there is no room for is one key away; words are wrapped, so that a line holds a little less than its width.
        rest = Content.styled(" … w shows the rest", "bold $accent")
        if len(message) + len(hint) + 2 <= width:
            return [Content.assemble((message, "$warning"), "  ", (hint, "$text"))]
        needed = -(-len(message) // width) + -(-len(hint) // width)
        if needed <= lines:
            return [Content.styled(line, style) for line, style in ((message, "$warning"), (hint, "$text")) if line]
        if -(-len(message) // width) < lines:
            return [Content.styled(message, "$warning"), _cut(hint, width - rest.cell_length, "$text") + rest]
        return [_cut(message, lines * width - rest.cell_length, "$warning") + rest]


def _hint(text: str) -> str:
    return f"→ {text}" if text else ""


def _cut(text: str, cells: int, style: str) -> Content:
    return Content.styled(text, style).truncate(max(1, cells))
