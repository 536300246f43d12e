"""A dialog with what can be removed from the home, and why that is safe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.screens.base import opens_dialog
from cockpit.state.formatting import counted, format_size
from cockpit.widgets.confirm import Confirm
from engine.protocol.messages import CleanItem, CleanQuery, CleanReply

if TYPE_CHECKING:
    from cockpit.connection.engine_app import EngineApp

RISKS = {"resume": "needed to resume", "cache": "in use lately", "checkpoint": "may be the best"}
"""Kind of what is not safe -> why, in short."""
PATIENCE = 600.0
"""Seconds that measuring a large home may take."""


class CleanDialog(ModalScreen[None]):
    """What is safe is marked at first; the rest has to be asked for."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    CleanDialog { align: center middle; }
    CleanDialog > Vertical {
        width: 96%; max-width: 130; height: 92%; border: round $accent; background: $surface; padding: 0 1;
    }
    CleanDialog OptionList {
        height: 1fr; border: none; background: $surface; text-wrap: nowrap; text-overflow: ellipsis;
    }
    CleanDialog Static { height: auto; }
    """
    BINDINGS = [
        Binding("escape,q", "dismiss(None)", "Close"),
        Binding("space", "mark", "Mark", priority=True),
        Binding("d", "remove", "Remove"),
        Binding("j", "move(1)", "Down"),
        Binding("k", "move(-1)", "Up"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.items: list[CleanItem] = []
        self.marked: set[str] = set()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content("Disk")
            box.border_subtitle = tr("Space marks · d removes what is marked · Esc closes")
            yield Static(tr("Looking at checkpoints and caches…"), id="clean-summary")
            yield OptionList(compact=True)
            yield Static(id="clean-why")

    def on_mount(self) -> None:
        self._load(CleanQuery())

    @property
    def listing(self) -> OptionList:
        return self.query_one(OptionList)

    @work(exclusive=True, group="clean")
    async def _load(self, query: CleanQuery) -> None:
        summary = self.query_one("#clean-summary", Static)
        if query.remove:
            self.marked = set()  # nothing is removed twice
            summary.update(tr("Removing {things}…", things=counted(len(query.remove), "thing")))
        reply: CleanReply | None = await self.app.ask("clean", query, timeout=PATIENCE)
        refused = reply is None
        if refused and query.remove:  # one of them has come into use
            reply = await self.app.ask("clean", CleanQuery(), timeout=PATIENCE)
        if reply is None:
            summary.update(tr("It is not known what can be removed: close this, and open it again"))
            return
        self.items = reply.items
        self.marked = {item.path for item in reply.items if item.safe} if refused or not query.remove else set()
        self.listing.clear_options()
        self.query_one("#clean-why", Static).update("")
        self.listing.add_options([self._label(item) for item in self.items])
        self.listing.highlighted = 0 if self.items else None
        self.listing.focus()
        if query.remove and not refused:
            self.notify(tr("{bytes} removed", bytes=format_size(sum(item.bytes for item in reply.removed))))
            if left := len(query.remove) - len(reply.removed):
                self.notify(
                    tr("{left} could not be removed, or came into use meanwhile", left=left), severity="warning"
                )
        self._free, self._total = reply.disk_free, reply.disk_total
        self._summarize()

    def _summarize(self) -> None:
        chosen = [item for item in self.items if item.path in self.marked]
        size = format_size(sum(item.bytes for item in chosen))
        text = (
            tr("{things} marked, {size} · ", things=counted(len(chosen), "thing"), size=size)
            if self.items
            else tr("Nothing can be removed · ")
        )
        disk = tr("{free} of {total} free", free=format_size(self._free), total=format_size(self._total))
        self.query_one("#clean-summary", Static).update(Content(text + disk))

    def _label(self, item: CleanItem) -> Content:
        mark = ("✔ ", "bold $accent") if item.path in self.marked else ("· ", "$text-muted")
        what = f"{item.run}@{item.step}" if item.run else item.path.rsplit("/", 1)[-1]
        risk = "" if item.safe else f"  {RISKS.get(item.kind, 'not safe')}"
        return Content.assemble(mark, f"{format_size(item.bytes):>6}  {item.kind:<11} {what}", (risk, "$warning"))

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_index < len(self.items):  # an earlier list may have been longer
            self.query_one("#clean-why", Static).update(Content(self.items[event.option_index].why))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.action_mark()

    def action_mark(self) -> None:
        at = self.listing.highlighted
        if at is not None:
            self.marked ^= {self.items[at].path}
            self.listing.replace_option_prompt_at_index(at, self._label(self.items[at]))
            self._summarize()

    def action_move(self, by: int) -> None:
        self.listing.action_cursor_down() if by > 0 else self.listing.action_cursor_up()

    @opens_dialog
    @work(group="remove")
    async def action_remove(self) -> None:
        chosen = [item for item in self.items if item.path in self.marked]
        if not chosen:
            return
        unsafe = [item for item in chosen if not item.safe]
        size = format_size(sum(item.bytes for item in chosen))
        text = tr("{things}, {size}, permanently.", things=counted(len(chosen), "thing"), size=size)
        if unsafe:
            text += tr(" {unsafe} of them are not safe to remove: runs may need them.", unsafe=len(unsafe))
        if await self.app.push_screen_wait(Confirm(tr("Remove what is marked?"), text, {"y": tr("remove it")})):
            self._load(CleanQuery(remove=[item.path for item in chosen], unsafe=bool(unsafe)))
