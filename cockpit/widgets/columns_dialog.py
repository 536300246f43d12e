"""A dialog to choose the columns of the list of runs."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.widgets.run_table import COLUMNS


class ColumnsDialog(ModalScreen[list[str] | None]):
    """Dismissed with the chosen columns, or with None for Esc."""

    DEFAULT_CSS = """
    ColumnsDialog { align: center middle; }
    ColumnsDialog > Vertical {
        width: 62; max-width: 96%; height: auto; max-height: 92%; border: round $accent; background: $surface;
        padding: 0 1;
    }
    ColumnsDialog OptionList { border: none; height: auto; max-height: 100%; background: $surface; }
    """
    BINDINGS = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("enter", "take", "Take", priority=True),
        Binding("space", "mark", "Take in or out", priority=True),
        Binding("j", "move(1)", "Down"),
        Binding("k", "move(-1)", "Up"),
    ]

    def __init__(self, chosen: Sequence[str]) -> None:
        super().__init__()
        self._chosen = set(chosen)

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content("Columns")
            box.border_subtitle = tr("Space takes one in or out · Enter · Esc cancels")
            yield OptionList(*map(self._label, COLUMNS), compact=True)

    def _label(self, name: str) -> Content:
        widest = max(map(len, COLUMNS))
        mark = ("✔ ", "bold $accent") if name in self._chosen else ("· ", "$text-muted")
        return Content.assemble(mark, (f"{name:<{widest}}", "bold"), f"  {COLUMNS[name].meaning}")

    @property
    def listing(self) -> OptionList:
        return self.query_one(OptionList)

    @on(OptionList.OptionSelected)
    def _option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click is as good as Space."""
        event.stop()
        self.action_mark()

    def action_mark(self) -> None:
        at = self.listing.highlighted
        if at is not None:
            self._chosen ^= {list(COLUMNS)[at]}
            self.listing.replace_option_prompt_at_index(at, self._label(list(COLUMNS)[at]))

    def action_move(self, by: int) -> None:
        self.listing.action_cursor_down() if by > 0 else self.listing.action_cursor_up()

    def action_take(self) -> None:
        self.dismiss([name for name in COLUMNS if name in self._chosen])
