"""A dialog about a profile that was written from data: what it trains, and what a launch would say of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from textual import events, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.yaml_edit import set_value

Forecast = Callable[[str], Awaitable[str]]
"""What a profile's text will take, as one line; empty where that is unknown."""
WRITE, REJECTED = "write", "rejected"
"""What the dialog is dismissed with, beside None."""


class DraftDialog(ModalScreen[str | None]):
    """Dismissed with `WRITE`, and then `text` is the profile; with `REJECTED` to look at the bad rows; or with None."""

    DEFAULT_CSS = """
    DraftDialog { align: center middle; }
    DraftDialog > Vertical {
        width: 92; max-width: 96%; height: auto; max-height: 96%; border: round $accent; background: $surface;
        padding: 1 2; overflow-y: auto; scrollbar-size-vertical: 1;
    }
    DraftDialog Static { width: 1fr; }
    """

    def __init__(self, facts: Mapping[str, Any], path: str, forecast: Forecast | None = None) -> None:
        """`forecast` says what a profile will take; it may take a while, and the dialog does not wait for it."""
        super().__init__()
        self._forecast, self._takes = forecast, "" if forecast is None else tr("forecasting memory and time …")
        self.facts, self._path = facts, path
        self.text = str(facts["profile"])
        self.refused = bool(facts["refused"])
        self._raised: float | None = None

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(tr("Train on {name}", name=self.facts["name"]))
            yield Static(self._describe())

    def on_mount(self) -> None:
        if self._forecast is not None:
            self._fetch_forecast(self._forecast)

    @work(exclusive=True)
    async def _fetch_forecast(self, forecast: Forecast) -> None:
        self._takes = await forecast(self.text)
        self.query_one(Static).update(self._describe())

    def _describe(self) -> Content:
        first, *others = map(str, self.facts["says"])
        if self._raised is not None:
            first = tr(
                "{partition}; data.max_rejected is raised to {raised}",
                partition=first.partition(", above")[0],
                raised=format_limit(self._raised),
            )
        mark, style = ("✗ ", "$text-error") if self.refused else ("✓ ", "$text-success")
        lines = [Content.assemble((mark, style), (first, "bold" if self.refused else ""))]
        lines += [Content.assemble(("· ", "dim"), line) for line in others]
        if self._takes:
            lines.append(Content.assemble(("· ", "dim"), self._takes))
        lines += [Content(""), Content.assemble((tr("goes to "), "dim"), self._path), Content("")]
        keys = {"y": tr("write it, and open it on Profile")}
        if self.facts["rejected"]:
            keys["r"] = tr("show the bad rows")
        if self.refused:
            keys["+"] = tr(
                "raise the limit to {sufficient}, and go on without them", sufficient=format_limit(self._sufficient())
            )
        keys["n"] = tr("cancel (Esc)")
        lines += [Content.assemble((f" {key} ", "bold $accent"), f" {label}") for key, label in keys.items()]
        return Content("\n").join(lines)

    def _sufficient(self) -> float:
        """The limit, in whole percent, that the bad rows do not exceed."""
        return min(1.0, math.ceil(100 * float(self.facts["rejected_share"])) / 100)

    def on_key(self, event: events.Key) -> None:
        event.stop()
        if event.key == "y":
            self.dismiss(WRITE)
        elif event.key == "r" and self.facts["rejected"]:
            self.dismiss(REJECTED)
        elif event.character == "+" and self.refused:
            self._raised, self.refused = self._sufficient(), False
            self.text = set_value(self.text, "data.max_rejected", f"{self._raised:g}")
            self.query_one(Static).update(self._describe())
        elif event.key in ("n", "escape"):
            self.dismiss(None)


def format_limit(share: float) -> str:
    """A limit in percent: 7 %."""
    return f"{100 * share:.3g} %"
