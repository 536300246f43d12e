"""A dialog that edits a list of sources: add, change, remove and move them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.yaml_edit import parse_scalar, to_flow_yaml
from cockpit.widgets.completion import LineSuggester

OPTIONS = ("source", "format", "encoding", "columns", "prompt", "system", "weight", "max_rows")
"""The options of a source, which are completed."""


class SourcesDialog(ModalScreen[list[Any] | None]):
    """Dismissed with the new list, or with None when nothing is to change."""

    DEFAULT_CSS = """
    SourcesDialog { align: center middle; }
    SourcesDialog > Vertical {
        width: 96; max-width: 96%; height: auto; max-height: 80%; border: round $accent; background: $surface;
        padding: 0 1;
    }
    SourcesDialog OptionList, SourcesDialog OptionList:focus {
        height: auto; max-height: 14; border: none; background: $surface; text-wrap: nowrap; text-overflow: ellipsis;
    }
    SourcesDialog Input { display: none; background: $boost; }
    SourcesDialog.-editing Input { display: block; }
    """
    BINDINGS = [
        Binding("a", "add", "Add"),
        Binding("d,delete", "remove", "Remove"),
        Binding("J", "move(1)", "Later", show=False),
        Binding("K", "move(-1)", "Earlier", show=False),
        Binding("j", "cursor(1)", "Down", show=False),
        Binding("k", "cursor(-1)", "Up", show=False),
        Binding("y", "take", "Take over"),
        Binding("escape,n", "leave", "Cancel"),
    ]

    def __init__(self, key: str, sources: Sequence[Any], directory: Path) -> None:
        super().__init__()
        self._key, self._sources = key, list(sources)
        self._directory = directory
        self._at: int | None = None
        """The source that is being edited; one behind the last for a new one."""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self._key)
            box.border_subtitle = tr("Enter edits · a adds · d removes · J K move · y takes over · Esc")
            yield OptionList(compact=True)
            yield Static(tr("No sources: a adds one."), id="empty")
            yield Input(
                placeholder="a path, or {source: PATH, format: …, weight: …}; → completes",
                suggester=LineSuggester(OPTIONS, self._directory),
                select_on_focus=False,
                compact=True,
            )

    def on_mount(self) -> None:
        self._show(0)

    def _show(self, at: int) -> None:
        listing = self.query_one(OptionList)
        listing.clear_options()
        listing.add_options([Content(to_flow_yaml(source)) for source in self._sources])
        listing.highlighted = min(at, len(self._sources) - 1) if self._sources else None
        self.query_one("#empty", Static).display = not self._sources
        listing.focus()

    @property
    def _current(self) -> int | None:
        return self.query_one(OptionList).highlighted

    @on(OptionList.OptionSelected)
    def _edit(self) -> None:
        if self._current is not None:
            self._open(self._current, to_flow_yaml(self._sources[self._current]))

    def action_add(self) -> None:
        self._open(len(self._sources), "")

    def _open(self, at: int, value: str) -> None:
        self._at = at
        self.add_class("-editing")
        line = self.query_one(Input)
        line.value = value
        line.focus()
        line.cursor_position = len(value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        value = parse_scalar(text) if text.startswith(("{", '"', "'")) else text  # else a path, as it stands
        if not isinstance(value, (str, dict)):
            self.notify(tr("write a path, or {source: PATH, …}"), severity="error")
            return
        if text and self._at is not None:
            self._sources[self._at : self._at + 1] = [value]
        self._close()

    def _close(self) -> None:
        self.remove_class("-editing")
        self._show(self._at or 0)
        self._at = None

    def action_remove(self) -> None:
        if self._current is not None:
            at = self._current
            del self._sources[at]
            self._show(at)

    def action_move(self, by: int) -> None:
        at = self._current
        if at is not None and 0 <= at + by < len(self._sources):
            self._sources.insert(at + by, self._sources.pop(at))
            self._show(at + by)

    def action_cursor(self, by: int) -> None:
        listing = self.query_one(OptionList)
        (listing.action_cursor_down if by > 0 else listing.action_cursor_up)()

    def action_take(self) -> None:
        self.dismiss(self._sources)

    def action_leave(self) -> None:
        self.dismiss(None)

    def on_key(self, event: Key) -> None:
        if event.key == "escape" and self.has_class("-editing"):
            event.stop()
            self._close()
