"""The dialog with the settings with which a profile fits, or which use the memory that is left."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from engine.protocol.messages import ProblemError

if TYPE_CHECKING:
    from cockpit.widgets.forecast_line import ForecastLine

Way = dict[str, Any]


class FitDialog(ModalScreen[Way | None]):
    """Dismissed with the settings of the chosen row, or with None."""

    DEFAULT_CSS = """
    FitDialog { align: center middle; }
    FitDialog > Vertical {
        width: 96; max-width: 96%; height: auto; max-height: 80%; border: round $accent; background: $surface;
        padding: 0 1;
    }
    FitDialog Static { height: auto; color: $text-muted; }
    FitDialog.-found Static { text-wrap: nowrap; }
    FitDialog OptionList {
        height: auto; max-height: 18; border: none; background: $surface; display: none; text-wrap: nowrap;
    }
    FitDialog.-found OptionList { display: block; }
    """
    BINDINGS = [("escape", "dismiss(None)", "Cancel")]

    def __init__(self, line: ForecastLine, wanted: tuple[str, str]) -> None:
        """`line` has the service that is asked, and `wanted` is what `ForecastLine.describe` returns."""
        super().__init__()
        self._line, self._wanted = line, wanted
        self.ways: list[Way] = []

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = tr("What fits")
            box.border_subtitle = tr("Esc cancels")
            yield Static(tr("Looking for settings that fit … this takes some seconds for each"), id="words")
            yield OptionList(compact=True)

    def on_mount(self) -> None:
        self._look()

    @work(exclusive=True)
    async def _look(self) -> None:
        try:
            found = await self._line.ask("fit", self._wanted, uuid.uuid4().hex)
        except ProblemError as error:
            parts = tuple(map(tr_engine, (error.problem.title, error.problem.cause, error.problem.hint)))
            self._say(Content("\n".join(filter(None, parts))))
            return
        self.ways = found.get("ways", [])
        if not self.ways:
            self._say(Content(tr("No settings were found with which it fits.")))
            return
        self._say(_row(tr("A CARD"), "HOST", "TIME", ["CHANGES"]))
        listing = self.query_one(OptionList)
        listing.add_options([Option(describe_way(way)) for way in self.ways])
        self.set_class(True, "-found")
        self.query_one(Vertical).border_subtitle = tr("↑↓ · Enter changes the profile · Esc")
        listing.highlighted = 0
        listing.focus()

    def _say(self, words: Content) -> None:
        self.query_one("#words", Static).update(words)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.ways[event.option_index]["settings"])


def describe_way(way: Way) -> Content:
    """A row: what it takes, how long, and the settings, one a line."""
    from engine.config.forecasts import format_size

    card = format_size(way["device_bytes"]) if way["device_bytes"] else "–"
    notes = [way["grows"]] if way.get("grows") else []
    notes += [tr("hardly fits")] if way["verdict"] == "near" else []
    lines = [f"{key}: {_write(value)}" for key, value in way["settings"].items()] or [tr("as it is")]
    lines[-1] += f"  ({'; '.join(notes)})" if notes else ""
    return _row(card, format_size(way["host_bytes"]), f"× {way['time']:g}", lines)


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _row(card: str, host: str, time: str, lines: Sequence[str]) -> Content:
    figures = f" {card:>8}  {host:>8}  {time:>7}  "
    return Content(f"\n{' ' * len(figures)}".join([figures + lines[0], *lines[1:]]))
