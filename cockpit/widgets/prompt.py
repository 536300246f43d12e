"""A dialog that asks for one line of text."""

from __future__ import annotations

from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.widgets.completion import LineSuggester


class Prompt(ModalScreen[str | None]):
    """Dismissed with the line, or with None for Esc. An empty line is an answer too; `value` is what Enter alone
    submits."""

    DEFAULT_CSS = """
    Prompt { align: center middle; }
    Prompt > Vertical {
        width: 76; max-width: 96%; height: auto; border: round $accent; background: $surface; padding: 0 1;
    }
    Prompt #text { height: auto; }
    Prompt Input { margin-top: 1; background: $boost; }
    """
    BINDINGS = [("escape", "dismiss(None)", "Cancel")]

    def __init__(self, title: str, text: str, value: str = "", *, paths: bool = False) -> None:
        """With `paths` the line is completed to paths."""
        super().__init__()
        self._suggester = LineSuggester(directory=Path.cwd()) if paths else None
        self.heading, self.text, self.value = title, text, value

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self.heading)
            box.border_subtitle = tr("Enter · Esc cancels")
            yield Static(Content(self.text), id="text")
            yield Input(self.value, select_on_focus=False, suggester=self._suggester, compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip())
