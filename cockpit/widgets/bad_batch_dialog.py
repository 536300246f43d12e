"""A batch that no step can be made of: its rows by their loss, each to be read, and what to do about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Static

from cockpit.state.app_state import Entry, RunTold
from cockpit.state.formatting import number
from cockpit.state.reply_format import indented
from cockpit.state.run_history import held, rows_of, way_back
from cockpit.widgets.run_dialog import Sheet
from engine.protocol.messages import Run

SPIKE = "loss spike"


class BadBatch(Sheet[str | None]):
    """Dismissed with `skip`, `rollback` or `continue`, or None. Enter does nothing: it is pressed too easily."""

    DEFAULT_CSS = """
    BadBatch #about { height: auto; margin-bottom: 1; }
    BadBatch DataTable { height: auto; max-height: 40%; background: $surface; }
    BadBatch VerticalScroll { height: 1fr; min-height: 3; margin-top: 1; border-top: solid $primary; }
    BadBatch #text { width: 1fr; height: auto; }
    """
    BINDINGS = [
        ("s", "choose('skip')", "Skip"),
        ("r", "choose('rollback')", "Roll back"),
        ("c", "choose('continue')", "Go on"),
        ("j", "move(1)", "Down"),
        ("k", "move(-1)", "Up"),
    ]
    KEYS = "↑↓ rows · PgUp PgDn text · Esc decides later"

    def __init__(self, run: str) -> None:
        super().__init__("bad batch", run)
        self._batch: Entry | None = None
        self._rows: list[dict[str, Any]] = []
        self._choices: dict[str, str] = {}

    def compose_sheet(self) -> ComposeResult:
        yield Static(id="about")
        yield DataTable(cursor_type="row")
        with VerticalScroll(can_focus=False):
            yield Static(id="text")

    def show(self, run: Run, told: RunTold) -> None:
        batch = told.bad_batch
        if batch is None:
            return
        self._choices = choices(batch, told) if held(run, told) is not None else {}
        self.query_one("#about", Static).update(_about(batch, self._choices))
        if batch is not self._batch:
            self._batch, self._rows = batch, rows_of(batch)
            self._fill()

    def _fill(self) -> None:
        table = self.query_one(DataTable)
        table.clear(columns=True)
        places = [_place(row) for row in self._rows]
        wide = min(28, max(map(len, places), default=0))
        room = max(10, self.app.size.width * 96 // 100 - 4 - (10 + 2) - (6 + 2) - (wide + 2) - 2)
        for name, width in (("loss", 10), ("tokens", 6), ("row", wide), ("text", room)):
            table.add_column(name, width=width)
        for row, place in zip(self._rows, places, strict=True):
            loss = row.get("loss")
            said = Content.styled("not finite", "bold $error") if loss is None else Content(f"{number(loss):>10}")
            text = Content(" ".join(row["text"].split())).truncate(room, ellipsis=True)
            table.add_row(said, Content(f"{row['tokens']:>6,}"), Content(place[-wide:]), text)
        table.focus()

    @on(DataTable.RowHighlighted)
    def _highlighted(self, event: DataTable.RowHighlighted) -> None:
        if 0 <= event.cursor_row < len(self._rows):
            row = self._rows[event.cursor_row]
            self.query_one("#text", Static).update(
                Content.assemble((f"{_place(row)}\n", "$text-muted"), indented(row["text"]))
            )
            self.query_one(VerticalScroll).scroll_home(animate=False)

    def action_choose(self, choice: str) -> None:
        if choice in self._choices:
            self.dismiss(choice)

    def action_move(self, by: int) -> None:
        table = self.query_one(DataTable)
        table.move_cursor(row=table.cursor_row + by, animate=False)

    def key_pageup(self) -> None:
        self.query_one(VerticalScroll).scroll_page_up(animate=False)

    def key_pagedown(self) -> None:
        self.query_one(VerticalScroll).scroll_page_down(animate=False)


def choices(batch: Entry, told: RunTold) -> dict[str, str]:
    """What can be done now: choice -> what it means."""
    back = way_back(told, batch["step"])
    found = {"skip": "leave these rows out, now and in later epochs, and go on"}
    if back is not None:
        lost = batch["step"] - back
        found["rollback"] = (
            f"go back to the checkpoint of step {back:,} ({lost:,} step{'s'[: lost != 1]} again) and leave them out"
        )
    spiked = batch["reason"].startswith(SPIKE)
    found["continue"] = "go on, and apply this update after all" if spiked else "go on; this step changes no weights"
    return found


def _about(batch: Entry, offered: Mapping[str, str]) -> Content:
    shown, total = len(batch["rows"]), batch["total"]
    count = f"{total:,} row{'s'[: total != 1]}" + (f", the worst {shown} of them shown" if shown < total else "")
    lines = [
        Content.styled(f"step {batch['step'] + 1:,} is held back: {batch['reason']}", "bold $warning"),
        Content.styled(f"{count}, the largest loss first", "$text-muted"),
    ]
    lines += [Content.assemble((f" {choice[0]} ", "bold $accent"), f" {text}") for choice, text in offered.items()]
    if not offered:
        lines[0] = Content.styled(f"step {batch['step'] + 1:,} was held back: {batch['reason']}", "bold")
        lines.append(Content.styled("it has been decided on: w says how", "$text-muted"))
    elif "rollback" not in offered:
        lines.append(Content.styled(" r  there is no checkpoint before it to go back to", "$text-muted"))
    return Content("\n").join(lines)


def _place(row: Mapping[str, Any]) -> str:
    name = str(row.get("file", "")).rpartition("/")[2]
    return f"{name}:{row.get('line', 0)}" if name else f"row {row['row']:,}"
