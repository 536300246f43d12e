"""When to draw: not more often than somebody can see, and not while the terminal is still swallowing the last frame.

Textual's writer thread holds up to thirty frames and then blocks the loop; on a slow link a key press would wait behind all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from textual.app import App
from textual.widget import Widget

BUSY = 0.05
"""Seconds until the next look at a terminal that is busy."""
SOON = 0.02
"""Seconds that events which come together have to come in."""


def writer_busy(app: App[Any]) -> bool:
    """Whether frames wait to be written. Textual keeps this to itself; a driver without a writer (tests, web) is never busy."""
    writer = getattr(app._driver, "_writer_thread", None)
    queue = getattr(writer, "_queue", None)
    return queue is not None and queue.qsize() > 0


class Pace:
    """Calls `draw` after `ask`: at once when it last did so `period` seconds ago or more, else when they are over, once for many asks;
    and not before the terminal is ready."""

    def __init__(self, widget: Widget, draw: Callable[[], None], period: float) -> None:
        self._widget, self._draw, self._period = widget, draw, period
        self._waiting = False
        self._drawn = 0.0

    def ask(self) -> None:
        if not self._waiting and self._widget.is_attached:
            self._waiting = True
            self._widget.set_timer(max(SOON, self._drawn + self._period - time.monotonic()), self._due)

    def _due(self) -> None:
        if not self._widget.screen.is_active:
            # Under a question a change would repaint the whole dimmed screen; what resumes is drawn anew.
            self._waiting = False
            return
        if writer_busy(self._widget.app):
            self._widget.set_timer(BUSY, self._due)
            return
        self._waiting, self._drawn = False, time.monotonic()
        self._draw()
