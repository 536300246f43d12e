"""A dialog with what happened during a run: changed settings, pauses, warnings; the newest first."""

from __future__ import annotations

import time
from collections.abc import Iterator

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.state.app_state import Entry, RunHistory
from cockpit.state.formatting import format_state
from cockpit.state.run_history import format_value
from cockpit.widgets.run_dialog import RunDialog
from engine.protocol.messages import AttemptEnd, Run

NOTHING = "Nothing yet: no changed settings, no warnings.\n\na changes a setting."
WORDS = {
    "pause": "paused",
    "continue": "continued",
    "rollback": "rolled back",
    "skip": "left out",
    "early stopping": "stopped early",
}
"""Ledger entries that are not settings."""


class HistoryDialog(RunDialog[None]):
    DEFAULT_CSS = "HistoryDialog VerticalScroll { height: 1fr; } HistoryDialog Static { width: 1fr; height: auto; }"
    BINDINGS = [("j", "scroll(1)", "Down"), ("k", "scroll(-1)", "Up")]

    def compose_dialog(self) -> ComposeResult:
        with VerticalScroll():
            yield Static()

    def show(self, run: Run, history: RunHistory) -> None:
        width = self.query_one(VerticalScroll).content_size.width
        blocks = list(format_entries(history, time.time(), width))
        self.query_one(Static).update(Content("\n").join(blocks) if blocks else Content(tr(NOTHING)))

    def on_resize(self) -> None:
        self.call_after_refresh(self.refresh_content, force=True)

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


def format_entries(history: RunHistory, now: float, width: int) -> Iterator[Content]:
    """The lines of each change and each warning: step, time, name, old and new value; wrapped to `width` cells."""
    ends = [{"kind": "end", "time": end.time, "step": end.step, "end": end} for end in history.attempts]
    entries: list[Entry] = sorted(
        (*history.ledger, *history.warnings, *ends), key=lambda entry: entry.get("time", 0.0), reverse=True
    )
    steps = [tr("step {step:,}", step=entry["step"]) if entry.get("step") is not None else "" for entry in entries]
    clocks = [_clock(entry.get("time", 0.0), now) for entry in entries]
    first, second = max(map(len, steps), default=0), max(map(len, clocks), default=0)
    for entry, step, clock in zip(entries, steps, clocks, strict=True):
        head = Content.styled(f"{step:<{first}}  {clock:<{second}}  ", "$text-muted")
        text = _WRITERS.get(entry.get("kind", ""), _warning)(entry)
        for at, line in enumerate(text.wrap(max(20, width - head.cell_length))):
            yield (head if at == 0 else Content(" " * head.cell_length)) + line


def _change(entry: Entry) -> Content:
    name, old, new = entry["name"], entry.get("old"), entry.get("new")
    if name == "pause":
        return Content.assemble(tr("‖ paused"), (f": {new}" if new else "", "$warning"))
    if name == "continue":
        return Content.assemble(tr("▶ continued"), (f": {new}" if new else "", "$accent"))
    if name in WORDS:
        known = " → ".join(format_value(value) for value in (old, new) if value is not None)
        return Content.assemble((tr(WORDS[name]), "bold"), f" {known}")
    return Content.assemble((name, "bold"), f"  {format_value(old)} → ", (format_value(new), "bold $accent"))


def _warning(entry: Entry) -> Content:
    hint = entry.get("hint", "")
    return Content.assemble(
        ("! ", "bold $warning"), (entry["message"], "$warning"), (f"\n→ {hint}" if hint else "", "$text")
    )


def _end(entry: Entry) -> Content:
    """How an attempt ended, which the run's own line does not say any more once it is resumed."""
    end: AttemptEnd = entry["end"]
    head = Content.assemble(format_state(end.state), (tr("  attempt {attempt}", attempt=end.attempt), "$text-muted"))
    if end.problem is not None:
        lines = [f"  {tr_engine(end.problem.title)}", *(tr_engine(part) for part in (end.problem.cause,) if part)]
        return Content.assemble(head, ("\n".join(lines), "$error"))
    return Content.assemble(head, (f"  {tr_engine(end.reason)}" if end.reason else "", "$text"))


_WRITERS = {"ledger": _change, "end": _end}
"""Kind of entry -> its text; all others are warnings."""


def _clock(moment: float, now: float) -> str:
    """14:03:55, or the day and 14:03 when that is not today."""
    local, today = time.localtime(moment), time.localtime(now)
    same = local[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same else "%d %b %H:%M", local)
