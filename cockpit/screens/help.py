"""The help dialog (`?`): what the current screen is for, and the keys that work where the focus is."""

from __future__ import annotations

import inspect
from typing import Any

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from cockpit.content import Content
from cockpit.screens import SCREENS


class HelpScreen(ModalScreen[None]):
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: 76; max-width: 96%; height: auto; max-height: 90%; border: round $accent; background: $surface; padding:
        0 1;
    }
    """
    BINDINGS = [("escape,q,question_mark", "dismiss", "Close")]

    def __init__(self, about: Screen[Any]) -> None:
        super().__init__()
        self._text = _describe(about)

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = "Help"
            box.border_subtitle = "Esc closes"
            yield Static(self._text)


def _describe(screen: Screen[Any]) -> Content:
    lines = [Content(text) for text in inspect.cleandoc(getattr(screen, "HELP_TEXT", "")).splitlines()]
    seen: set[str] = set()
    own: list[Content] = []
    everywhere = [
        Content.assemble(("1–6".rjust(12), "bold $accent"), "  ", " · ".join(title for title, _ in SCREENS.values()))
    ]
    # Bindings of the key bar first: of two keys for one action, it shows the better known.
    for active in sorted(screen.active_bindings.values(), key=lambda active: not active.binding.show):
        binding = active.binding
        if not binding.description or binding.action in seen or binding.action.startswith(("go(", "app.", "screen.")):
            continue
        seen.add(binding.action)
        key = screen.app.get_key_display(binding)
        line = Content.assemble((key.rjust(12), "bold $accent"), "  ", binding.description)
        (everywhere if active.node is screen.app else own).append(line)
    blocks = [lines, [Content.styled("Here", "bold"), *own], [Content.styled("Everywhere", "bold"), *everywhere]]
    return Content("\n\n").join(Content("\n").join(block) for block in blocks if block)
