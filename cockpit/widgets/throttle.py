"""Limits how often a widget draws, and waits while the terminal has not taken the last frame yet.

Textual's writer thread queues up to thirty frames and then blocks the event loop; on a slow link a key press would wait
for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from textual.app import App
from textual.widget import Widget

BUSY = 0.05
"""Seconds until a busy terminal is checked again."""
DELAY = 0.02
"""Seconds to wait for further events, which are then drawn together."""


def writer_busy(app: App[Any]) -> bool:
    """Whether frames wait to be written. This is private to Textual; a driver without a writer (tests, web) is never
    busy."""
    writer = getattr(app._driver, "_writer_thread", None)
    queue = getattr(writer, "_queue", None)
    return queue is not None and queue.qsize() > 0


class Throttle:
    """Calls `draw` after `request`, at most once in `period` seconds, once for many requests, and only when the
    terminal is ready."""

    def __init__(self, widget: Widget, draw: Callable[[], None], period: float) -> None:
        self._widget, self._draw, self._period = widget, draw, period
        self._waiting = False
        self._drawn = 0.0

    def request(self) -> None:
        if not self._waiting and self._widget.is_attached:
            self._waiting = True
            self._widget.set_timer(max(DELAY, self._drawn + self._period - time.monotonic()), self._due)

    def _due(self) -> None:
        if not self._widget.screen.is_active:
            # Under a dialog a change would repaint the whole dimmed screen. A screen that resumes is drawn again.
            self._waiting = False
            return
        if writer_busy(self._widget.app):
            self._widget.set_timer(BUSY, self._due)
            return
        self._waiting, self._drawn = False, time.monotonic()
        self._draw()
