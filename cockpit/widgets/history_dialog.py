"""What happened while a run ran: changed settings, pauses, warnings; the newest first."""

from __future__ import annotations

import time
from collections.abc import Iterator

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from cockpit.state.app_state import Entry, RunTold
from cockpit.state.run_history import written
from cockpit.widgets.run_dialog import Sheet
from engine.protocol.messages import Run

NOTHING = "Nothing yet: no setting was changed, nothing was warned of.\n\na changes a setting."
WORDS = {
    "pause": "paused",
    "continue": "went on",
    "rollback": "rolled back",
    "skip": "left out",
    "early stopping": "stopped early",
}
"""Entries of the ledger that are no settings."""


class History(Sheet[None]):
    DEFAULT_CSS = "History VerticalScroll { height: 1fr; } History Static { width: 1fr; height: auto; }"
    BINDINGS = [("j", "scroll(1)", "Down"), ("k", "scroll(-1)", "Up")]

    def compose_sheet(self) -> ComposeResult:
        with VerticalScroll():
            yield Static()

    def show(self, run: Run, told: RunTold) -> None:
        width = self.query_one(VerticalScroll).content_size.width
        blocks = list(lines(told, time.time(), width))
        self.query_one(Static).update(Content("\n").join(blocks) if blocks else Content(NOTHING))

    def on_resize(self) -> None:
        self.call_after_refresh(self.look, again=True)

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


def lines(told: RunTold, now: float, width: int) -> Iterator[Content]:
    """A block for each change and each warning: step, time, what, from what to what; wrapped to so many cells."""
    entries = sorted((*told.ledger, *told.warnings), key=lambda entry: entry.get("time", 0.0), reverse=True)
    steps = [f"step {entry['step']:,}" if entry.get("step") is not None else "" for entry in entries]
    clocks = [_clock(entry.get("time", 0.0), now) for entry in entries]
    first, second = max(map(len, steps), default=0), max(map(len, clocks), default=0)
    for entry, step, clock in zip(entries, steps, clocks, strict=True):
        head = Content.styled(f"{step:<{first}}  {clock:<{second}}  ", "$text-muted")
        said = _change(entry) if entry.get("kind") == "ledger" else _warning(entry)
        for at, line in enumerate(said.wrap(max(20, width - head.cell_length))):
            yield (head if at == 0 else Content(" " * head.cell_length)) + line


def _change(entry: Entry) -> Content:
    name, old, new = entry["name"], entry.get("old"), entry.get("new")
    if name == "pause":
        return Content.assemble("‖ paused", (f": {new}" if new else "", "$warning"))
    if name == "continue":
        return Content.assemble("▶ went on", (f": {new}" if new else "", "$accent"))
    if name in WORDS:
        known = " → ".join(written(value) for value in (old, new) if value is not None)
        return Content.assemble((WORDS[name], "bold"), f" {known}")
    return Content.assemble((name, "bold"), f"  {written(old)} → ", (written(new), "bold $accent"))


def _warning(entry: Entry) -> Content:
    hint = entry.get("hint", "")
    return Content.assemble(
        ("! ", "bold $warning"), (entry["message"], "$warning"), (f"\n→ {hint}" if hint else "", "$text")
    )


def _clock(moment: float, now: float) -> str:
    """14:03:55, with the day when that is not today's."""
    local, today = time.localtime(moment), time.localtime(now)
    same = local[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same else "%d %b %H:%M", local)
