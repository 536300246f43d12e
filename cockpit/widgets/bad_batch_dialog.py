"""The rows of a batch that is held back, by their loss, and the choice of what to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.app_state import Entry, RunHistory
from cockpit.state.formatting import format_number
from cockpit.state.reply_format import indent_json
from cockpit.state.run_history import held_batch, rollback_step, sort_rows
from cockpit.widgets.run_dialog import RunDialog
from engine.protocol.messages import Run


class BadBatchDialog(RunDialog[str | None]):
    """Dismissed with `skip`, `rollback` or `continue`, or with None. Enter does nothing, because it is pressed too
    easily."""

    DEFAULT_CSS = """
    BadBatchDialog #about { height: auto; margin-bottom: 1; }
    BadBatchDialog DataTable { height: auto; max-height: 40%; background: $surface; }
    BadBatchDialog VerticalScroll { height: 1fr; min-height: 3; margin-top: 1; border-top: solid $primary; }
    BadBatchDialog #text { width: 1fr; height: auto; }
    """
    BINDINGS = [
        ("s", "choose('skip')", "Skip"),
        ("r", "choose('rollback')", "Roll back"),
        ("c", "choose('continue')", "Continue"),
        ("j", "move(1)", "Down"),
        ("k", "move(-1)", "Up"),
    ]
    KEYS = "↑↓ rows · PgUp PgDn text · Esc decides later"

    def __init__(self, run: str) -> None:
        super().__init__(tr("bad batch"), run)
        self._batch: Entry | None = None
        self._rows: list[dict[str, Any]] = []
        self._choices: dict[str, str] = {}

    def compose_dialog(self) -> ComposeResult:
        yield Static(id="about")
        yield DataTable(cursor_type="row")
        with VerticalScroll(can_focus=False):
            yield Static(id="text")

    def show(self, run: Run, history: RunHistory) -> None:
        batch = history.bad_batch
        if batch is None:
            return
        self._choices = list_choices(batch, history) if held_batch(run, history) is not None else {}
        self.query_one("#about", Static).update(_about(batch, self._choices))
        if batch is not self._batch:
            self._batch, self._rows = batch, sort_rows(batch)
            self._fill()

    def _fill(self) -> None:
        table = self.query_one(DataTable)
        table.clear(columns=True)
        places = [_place(row) for row in self._rows]
        place_width = min(28, max(map(len, places), default=0))
        room = max(10, self.app.size.width * 96 // 100 - 4 - (10 + 2) - (6 + 2) - (place_width + 2) - 2)
        for name, width in (("loss", 10), ("tokens", 6), ("row", place_width), ("text", room)):
            table.add_column(name, width=width)
        for row, place in zip(self._rows, places, strict=True):
            loss = row.get("loss")
            loss_cell = (
                Content.styled(tr("not finite"), "bold $error")
                if loss is None
                else Content(f"{format_number(loss):>10}")
            )
            text = Content(" ".join(row["text"].split())).truncate(room, ellipsis=True)
            table.add_row(loss_cell, Content(f"{row['tokens']:>6,}"), Content(place[-place_width:]), text)
        table.focus()

    @on(DataTable.RowHighlighted)
    def _highlighted(self, event: DataTable.RowHighlighted) -> None:
        if 0 <= event.cursor_row < len(self._rows):
            row = self._rows[event.cursor_row]
            self.query_one("#text", Static).update(
                Content.assemble((f"{_place(row)}\n", "$text-muted"), indent_json(row["text"]))
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


def list_choices(batch: Entry, history: RunHistory) -> dict[str, str]:
    """The possible decisions: choice -> its effect."""
    back = rollback_step(history, batch["step"])
    found = {"skip": tr("leave these rows out, now and in later epochs, and continue")}
    if back is not None:
        lost = batch["step"] - back
        found["rollback"] = tr(
            "return to the checkpoint of step {back:,} (repeats {lost:,} step{plural}) and leave them out",
            back=back,
            lost=lost,
            plural="s"[: lost != 1],
        )
    spiked = batch.get("code") == "pause.loss_spike"
    found["continue"] = (
        tr("continue, and apply this update after all") if spiked else tr("continue; this step changes no weights")
    )
    return found


def _about(batch: Entry, choices: Mapping[str, str]) -> Content:
    listed, total = len(batch["rows"]), batch["total"]
    count = tr("{total:,} row{plural}", total=total, plural="s"[: total != 1]) + (
        tr(", the {listed} with the largest losses are listed", listed=listed) if listed < total else ""
    )
    lines = [
        Content.styled(
            tr("step {step:,} is held back: {reason}", step=batch["step"] + 1, reason=batch["reason"]), "bold $warning"
        ),
        Content.styled(tr("{count}, largest loss first", count=count), "$text-muted"),
    ]
    lines += [Content.assemble((f" {choice[0]} ", "bold $accent"), f" {text}") for choice, text in choices.items()]
    if not choices:
        lines[0] = Content.styled(
            tr("step {step:,} was held back: {reason}", step=batch["step"] + 1, reason=batch["reason"]), "bold"
        )
        lines.append(Content.styled(tr("a decision was made: w shows which"), "$text-muted"))
    elif "rollback" not in choices:
        lines.append(Content.styled(tr(" r  not possible: there is no checkpoint before this step"), "$text-muted"))
    return Content("\n").join(lines)


def _place(row: Mapping[str, Any]) -> str:
    name = str(row.get("file", "")).rpartition("/")[2]
    return f"{name}:{row.get('line', 0)}" if name else tr("row {row:,}", row=row["row"])
