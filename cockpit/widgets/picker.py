"""A dialog to choose from a list, which typing filters, or to type something that is not on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.widgets.completion import LineSuggester


@dataclass(frozen=True)
class Choice:
    """`name` is shown in place of the value."""

    value: str
    detail: str
    name: str = ""


class Picker(ModalScreen[str | None]):
    """Dismissed with a choice's value, with the typed text when no choice matches it, or with None for Esc."""

    DEFAULT_CSS = """
    Picker { align: center middle; }
    Picker > Vertical {
        width: 80; max-width: 96%; height: auto; max-height: 80%; border: round $accent; background: $surface; padding:
        0 1;
    }
    Picker Input { background: $boost; }
    Picker OptionList {
        height: auto; max-height: 14; border: none; background: $surface; text-wrap: nowrap; text-overflow: ellipsis;
    }
    """
    BINDINGS = [("escape", "dismiss(None)", "Cancel"), ("down", "move(1)", "Next"), ("up", "move(-1)", "Previous")]

    def __init__(
        self, title: str, placeholder: str, choices: Sequence[Choice], start: int = 0, *, paths: bool = False
    ) -> None:
        """`start`: the index of the choice that is highlighted first. With `paths` the line is completed to paths."""
        super().__init__()
        self._suggester = LineSuggester(directory=Path.cwd()) if paths else None
        self.heading, self.placeholder, self.choices, self.start = title, placeholder, choices, start

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self.heading)
            box.border_subtitle = tr("↑↓ · Enter · Esc cancels")
            yield Input(placeholder=self.placeholder, suggester=self._suggester, compact=True)
            yield OptionList(compact=True)

    def on_mount(self) -> None:
        self._filter("")

    @on(Input.Changed)
    def _input_changed(self, event: Input.Changed) -> None:
        self._filter(event.value.strip())

    def _filter(self, text: str) -> None:
        listing = self.query_one(OptionList)
        listing.clear_options()
        for choice in self.choices:
            if text.lower() in f"{choice.value} {choice.detail}".lower():
                listing.add_option(
                    Option(
                        Content.assemble(choice.name or choice.value, (f"  {choice.detail}", "dim")), id=choice.value
                    )
                )
        listing.highlighted = (0 if text else self.start) if listing.option_count else None

    def action_move(self, by: int) -> None:
        listing = self.query_one(OptionList)
        listing.action_cursor_down() if by > 0 else listing.action_cursor_up()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        option = self.query_one(OptionList).highlighted_option
        text = event.value.strip()
        if option is not None:
            self.dismiss(option.id)
        elif text:
            self.dismiss(text)

    @on(OptionList.OptionSelected)
    def _option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)
