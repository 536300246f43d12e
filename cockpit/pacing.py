"""When to draw: not more often than somebody can see, and not while the terminal is still swallowing the last frame.

Textual's writer thread holds up to thirty frames and then blocks the loop; on a slow link a key press would wait behind all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.app import App
from textual.widget import Widget

BUSY = 0.05
"""Seconds until the next look at a terminal that is busy."""


def writer_busy(app: App[Any]) -> bool:
    """Whether frames wait to be written. Textual keeps this to itself; a driver without a writer (tests, web) is never busy."""
    writer = getattr(app._driver, "_writer_thread", None)
    queue = getattr(writer, "_queue", None)
    return queue is not None and queue.qsize() > 0


class Pace:
    """Calls `draw` soon after `ask`, once for many asks, at most every `period` seconds, and not before the terminal is ready."""

    def __init__(self, widget: Widget, draw: Callable[[], None], period: float) -> None:
        self._widget, self._draw, self._period = widget, draw, period
        self._waiting = False

    def ask(self) -> None:
        if not self._waiting and self._widget.is_attached:
            self._waiting = True
            self._widget.set_timer(self._period, self._due)

    def _due(self) -> None:
        if writer_busy(self._widget.app):
            self._widget.set_timer(BUSY, self._due)
            return
        self._waiting = False
        self._draw()
