"""The training rows that a run learnt worst, likely label errors first: look, mend, drop, use less often."""

from __future__ import annotations

import os
import shlex
import subprocess
import uuid
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static

from cockpit.connection.service_client import ServiceClient
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.state.formatting import counted, format_number
from cockpit.widgets.prompt import Prompt
from engine.protocol.messages import ProblemError

ORDERS = {
    "error": "likely label errors",
    "loss": "latest loss",
    "rise": "rise since the best epoch",
    "never-learnt": "never learnt",
}
"""The orders, in the order in which `t` goes through them."""
TOP = 100
LIST = "excluded.jsonl"
"""The list that is offered for dropped rows, beside the profile."""


class WorstRowsScreen(CockpitScreen):
    OVER = "Worst rows"
    HELP_TEXT = """\
The training rows that the run learnt worst, from the loss that each had in each epoch. First come likely label errors:
rows far above those that were trained at about the same time. t orders them by the latest loss, by its rise since the
best epoch, or by the best loss of all epochs. Below a row stand rows with nearly the same prompt and another answer.
e opens the row's file at its line in $EDITOR. d leaves the row out of later runs, h uses it half as often: it is
added to a list, which data.exclude of a profile names."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "sort", "Order"),
        Binding("e", "edit", "Edit file"),
        Binding("d", "exclude('0')", "Drop"),
        Binding("h", "exclude('0.5')", "Half as often"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
        Binding("pagedown", "scroll(1)", "Text down", show=False),
        Binding("pageup", "scroll(-1)", "Text up", show=False),
        Binding("escape", "leave", "Back", key_display="Esc"),
        Binding("q", "leave", "Back", show=False),
    ]
    DEFAULT_CSS = """
    WorstRowsScreen #place {
        height: 1; background: $surface; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis;
    }
    WorstRowsScreen DataTable { height: 1fr; background: $background; scrollbar-size: 1 1; }
    WorstRowsScreen VerticalScroll {
        height: 1fr; border-top: solid $primary; padding: 0 1; scrollbar-size-vertical: 1;
    }
    WorstRowsScreen #text { width: 1fr; height: auto; }
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_id = run
        self.worker = ServiceClient(self.app, "data")
        self.by = "error"
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.listed: dict[tuple[str, int], float] = {}
        """The weight of each row, by place, that has been added to the list."""
        self._list = str(Path.cwd() / LIST)

    def compose_body(self) -> ComposeResult:
        yield Static(id="place")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        with VerticalScroll(can_focus=False):
            yield Static(id="text")

    def on_mount(self) -> None:
        self.query_one(DataTable).focus()
        self._read()

    async def on_unmount(self) -> None:
        await self.worker.close()

    def on_resize(self) -> None:
        self._fill()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (action == "exclude" and self.app.readonly)

    @work(exclusive=True, group="read")
    async def _read(self) -> None:
        self.query_one("#place", Static).update(tr("{run_id} · reading …", run_id=self.run_id))
        answer = await self._ask({"run": self.run_id, "by": self.by, "top": TOP})
        if answer is None:
            self.query_one("#place", Static).update(tr("{run_id} · no losses of rows", run_id=self.run_id))
            return
        self.facts, self.rows = answer, answer["worst"]
        self._fill()

    async def _ask(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = await self.worker.ask("worst", arguments, uuid.uuid4().hex)
        except ProblemError as error:
            self.app.notify_problem(error.problem)
            return None
        return answer

    # ── display ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _fill(self) -> None:
        if not self.facts:
            return
        table = self.query_one(DataTable)
        cursor = table.cursor_row
        table.clear(columns=True)
        places = [_place(row) for row in self.rows]
        width = min(28, max(map(len, places), default=5))
        room = max(10, self.app.size.width - (1 + 6 + 6 + width) - 5 * 2 - 2)
        for name, cells in (("", 1), ("score", 6), ("loss", 6), ("row", width), ("answer", room)):
            table.add_column(name, width=cells)
        for row, place in zip(self.rows, places, strict=True):
            weight = self.listed.get((row["file"], row["line"]))
            mark = "" if weight is None else "✗" if weight == 0 else "½"
            known = [loss for loss in row["losses"] if loss is not None]
            answer = Content(" ".join(row["answer"].split())).truncate(room, ellipsis=True)
            loss = format_number(known[-1]) if known else "–"
            table.add_row(
                Content.styled(mark, "bold $error"),
                Content(f"{format_number(row['score']):>6}"),
                Content(f"{loss:>6}"),
                Content(place[-width:]),
                answer,
            )
        said = tr(
            "{run_id} · {ORDERS} first · {rows}, {epochs}",
            run_id=self.run_id,
            ORDERS=tr(ORDERS[self.by]),
            rows=counted(self.facts["rows"], "row"),
            epochs=counted(self.facts["epochs"], "epoch"),
        )
        if not self.facts["places"]:
            said += tr(" · files unknown: prepared by an older version")
        self.query_one("#place", Static).update(Content(said))
        table.move_cursor(row=min(cursor, max(0, len(self.rows) - 1)), animate=False)
        self._show_text()

    @on(DataTable.RowHighlighted)
    def _show_text(self) -> None:
        row = self.current
        if row is None:
            self.query_one("#text", Static).update(tr("no rows"))
            return
        losses = " → ".join("–" if loss is None else format_number(loss) for loss in row["losses"])
        lines = [
            Content.styled(
                tr(
                    "{file}:{line} · loss by epoch {losses}",
                    file=row["file"] or "file unknown",
                    line=row["line"],
                    losses=losses,
                ),
                "$text-muted",
            ),
            Content(row["prompt"].strip()),
            Content.styled(row["answer"].strip(), "bold"),
        ]
        for other in row["alike"]:
            lines += [
                Content.styled(
                    tr("alike {similarity:.0%} · {place}", similarity=other["similarity"], place=_place(other)),
                    "$warning",
                ),
                Content(other["answer"].strip()),
            ]
        self.query_one("#text", Static).update(Content("\n").join(lines))
        self.query_one(VerticalScroll).scroll_home(animate=False)

    @property
    def current(self) -> dict[str, Any] | None:
        at = self.query_one(DataTable).cursor_row
        return self.rows[at] if 0 <= at < len(self.rows) else None

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def action_sort(self) -> None:
        names = list(ORDERS)
        self.by = names[(names.index(self.by) + 1) % len(names)]
        if self.by == "rise" and self.facts.get("epochs", 0) < 2:
            self.by = "never-learnt"
        self._read()

    def action_edit(self) -> None:
        """Open the row's file at its line in the editor."""
        row = self.current
        if row is None or not row["line"] or not Path(row["file"]).is_file():
            self.notify(tr("the row's file is not here, or not known"), severity="warning")
            return
        try:
            with self.app.suspend():
                subprocess.run(edit_command(row["file"], row["line"], os.environ), check=False)
        except (SuspendNotSupported, OSError, ValueError):
            self.notify(tr("open it yourself: {file}:{line}", file=row["file"], line=row["line"]), severity="warning")

    @opens_dialog
    @work(group="exclude")
    async def action_exclude(self, weight: str) -> None:
        """Add the row to a list of rows that later runs leave out, or use less often."""
        row = self.current
        if row is None:
            return
        if not self.listed:
            text = tr("The list that the row is added to; data.exclude of a profile names it:")
            path = await self.app.push_screen_wait(Prompt(tr("Leave rows out"), text, self._list))
            if not path:
                return
            self._list = str(Path(path).expanduser().absolute())
        if not row["line"]:
            self.notify(tr("the row's file is not known, so it cannot be left out"), severity="warning")
            return
        asked = {"run": self.run_id, "by": self.by, "top": TOP, "weight": float(weight)}
        asked["placed"] = [[row["file"], row["line"]]]
        answer = await self._ask(asked | {"drop": self._list})
        if answer is None:
            return
        self.listed[row["file"], row["line"]] = float(weight)
        self._fill()
        self.notify(
            tr("{rows} in {list}: set data.exclude to it", rows=counted(answer["listed"], "row"), list=self._list),
            title=tr("Listed"),
        )

    def action_move(self, by: int) -> None:
        table = self.query_one(DataTable)
        table.move_cursor(row=table.cursor_row + by, animate=False)

    def action_scroll(self, by: int) -> None:
        text = self.query_one(VerticalScroll)
        text.scroll_page_down(animate=False) if by > 0 else text.scroll_page_up(animate=False)

    def action_leave(self) -> None:
        self.dismiss(None)


def edit_command(file: str, line: int, environment: Any) -> list[str]:
    """The command that opens a file at a line, in the user's editor; `vi` without one. Raises ValueError for quotes
    without an end."""
    editor = shlex.split(environment.get("VISUAL") or environment.get("EDITOR") or "") or ["vi"]
    name = Path(editor[0]).name
    if name in ("code", "codium", "cursor"):
        return [*editor, "--wait", "--goto", f"{file}:{line}"]
    if name in ("subl", "hx", "helix", "zed"):
        return [*editor, f"{file}:{line}"]
    return [*editor, f"+{line}", file]


def _place(row: dict[str, Any]) -> str:
    name = str(row["file"]).rpartition("/")[2]
    return f"{name}:{row['line']}" if row["line"] else "unknown"
