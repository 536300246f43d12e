"""A dialog in which a longer text is written or pasted."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static, TextArea

from cockpit.content import Content
from cockpit.language.translate import tr


class WriteDialog(ModalScreen[str | None]):
    """Dismissed with the text, or with None for Esc."""

    DEFAULT_CSS = """
    WriteDialog { align: center middle; }
    WriteDialog > Vertical {
        width: 90; max-width: 96%; height: 20; max-height: 92%; border: round $accent; background: $surface;
        padding: 0 1;
    }
    WriteDialog #help { height: auto; color: $text-muted; }
    WriteDialog TextArea { height: 1fr; border: round $primary; padding: 0 1; }
    WriteDialog TextArea:focus { border: round $accent; }
    """
    BINDINGS = [
        Binding("ctrl+s", "accept", "Accept", priority=True),
        Binding("escape", "dismiss(None)", "Cancel", priority=True),
    ]

    def __init__(self, title: str, text: str, value: str = "", verb: str = "") -> None:
        super().__init__()
        self._title, self._text, self._value, self._verb = title, text, value, verb or tr("keeps it")

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self._title)
            box.border_subtitle = tr("ctrl+s {verb} · Esc cancels", verb=self._verb)
            yield Static(Content(self._text), id="help")
            yield TextArea(self._value, highlight_cursor_line=False)

    def on_mount(self) -> None:
        area = self.query_one(TextArea)
        area.focus()
        area.move_cursor(area.document.end)

    def action_accept(self) -> None:
        self.dismiss(self.query_one(TextArea).text)
