"""A dialog with a question whose answers each need their own key."""

from __future__ import annotations

from collections.abc import Mapping

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.content import Content


class Confirm(ModalScreen[str | None]):
    """Dismissed with the key of a choice, or with None for Esc and `n`. Enter does nothing, because it is pressed too
    easily."""

    DEFAULT_CSS = """
    Confirm { align: center middle; }
    Confirm > Vertical {
        width: auto; max-width: 90%; height: auto; border: round $warning; background: $surface; padding: 1 2;
    }
    Confirm Static { width: auto; }
    """

    def __init__(self, title: str, text: str, choices: Mapping[str, str]) -> None:
        super().__init__()
        self._title, self._text, self._choices = title, text, choices

    def compose(self) -> ComposeResult:
        keys = [Content.assemble((f" {key} ", "bold $accent"), f" {label}") for key, label in self._choices.items()]
        keys.append(Content.assemble((" n ", "bold $accent"), " cancel (Esc)"))
        with Vertical() as box:
            box.border_title = Content(self._title)
            yield Static(Content("\n").join([Content(self._text), Content(""), *keys]))

    def on_key(self, event: events.Key) -> None:
        event.stop()
        if event.key in self._choices:
            self.dismiss(event.key)
        elif event.key in ("n", "escape"):
            self.dismiss(None)
