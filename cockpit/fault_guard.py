"""Catches exceptions that nothing else has caught, so that none ends the app: each is logged and shown on a page.

Textual ends the app for an exception in a handler, a worker, a timer or while drawing. Here a widget whose handler has
failed goes on with its next message. What cannot go on is a screen that cannot be composed or drawn.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import wraps
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from textual import events
from textual._context import active_message_pump
from textual.app import App
from textual.css.query import NoMatches
from textual.errors import NoWidget
from textual.message import Message
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import OptionList
from textual.worker import WorkerFailed

from cockpit.language.translate import tr
from engine.protocol.home import make_private, open_private
from engine.protocol.messages import Problem
from engine.protocol.terminal import show_controls

DRAWING = frozenset(
    {
        "_compose", "_pre_process", "_refresh_layout", "_compositor_refresh", "_on_timer_update", "_on_layout",
        "_on_update", "render_update", "render_strips", "reflow", "arrange", "get_content_width", "get_content_height",
    }
)  # fmt: skip
"""Functions of Textual in which a screen is made or drawn. A screen that fails in one would fail there again."""
LOG_BYTES = 1 << 20
AGAIN = 1.5
"""Seconds after going back within which another exception of the same screen means that it cannot be used."""
MANY, PERIOD = 30, 10.0
"""More exceptions than this within so many seconds are counted but no longer logged."""


@dataclass(frozen=True)
class Fault:
    """An exception that has been caught. `screen` is where it happened, if it was on one; `broken` says whether that
    screen cannot be shown again."""

    problem: Problem
    report: str
    screen: Screen[Any] | None
    broken: bool


class FaultPage(Screen[None]):
    """The page about a fault. An exception of this page itself ends the app."""

    fault: Fault

    def count(self) -> None:
        """Another exception has come up while this page is open."""
        raise NotImplementedError


class FaultTolerantApp(App[None]):
    """An app that no exception ends as long as it can show a page about it. Subclasses show it, and name the log."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = 0
        """Exceptions that have been caught."""
        self._logged: deque[float] = deque(maxlen=MANY)
        self._left: tuple[Screen[Any] | None, float] = (None, 0.0)
        """The last screen with a fault that the user went back to, and when."""

    @property
    def fault_log(self) -> Path:
        """The file that reports are appended to."""
        raise NotImplementedError

    def show_fault(self, fault: Fault) -> None:
        """Show a page about `fault`. Called by the app's own message loop."""
        raise NotImplementedError

    def went_back(self, screen: Screen[Any] | None) -> None:
        """Note that the user has gone back to this screen after a fault of it."""
        self._left = (screen, time.monotonic())

    def _handle_exception(self, error: Exception) -> None:
        """Called by Textual for an exception that nothing has caught."""
        self.catch(error, active_message_pump.get(None))

    def catch(self, error: Exception, pump: MessagePump | None = None) -> None:
        """Log an exception, and show it when the app can show anything."""
        if isinstance(error, WorkerFailed):
            error = error.error if isinstance(error.error, Exception) else error
        if isinstance(error, NoMatches) and (self._exit or self._closing or not self.is_running or _is_removed(error)):
            return  # a worker came back with its answer after its widgets had been removed
        screen = _failed_screen(error) or _screen_of(pump)
        failed_again = screen is not None and screen is self._left[0] and time.monotonic() - self._left[1] < AGAIN
        broken = failed_again or any(frame.f_code.co_name in DRAWING for frame in _frames(error))
        fault = Fault(describe(error), self._report(error, pump), screen, broken)
        self.faults += 1
        self._write_report(fault.report)
        if self._exit or (self._is_mounted and not self.is_running):
            return  # leaving: there is nobody to show it to
        if self._is_mounted and not isinstance(screen, FaultPage):
            self.call_later(self.show_fault, fault)
        else:
            super()._handle_exception(error)

    def _report(self, error: Exception, pump: MessagePump | None) -> str:
        from importlib.metadata import version

        where = f"{type(pump).__name__} on {type(_screen_of(pump)).__name__}" if pump else "the app"
        trace = "".join(traceback.format_exception(error))
        versions = f"cockpit {version('cockpit')}, textual {version('textual')}"
        return show_controls(f"{versions}, {self.size.width}x{self.size.height}, in {where}\n{trace}")

    def _write_report(self, report: str) -> None:
        now = time.monotonic()
        if len(self._logged) == MANY and now - self._logged[0] < PERIOD:
            return
        self._logged.append(now)
        try:
            append_report(self.fault_log, report)
        except OSError:
            pass  # a full or read-only disk: the page still shows the report


def describe(error: Exception) -> Problem:
    """An exception as a problem: what it says, and where our own code caused it."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    place = next(reversed([_place(frame, line) for frame, line in _walk(error) if _is_ours(frame)]), "")
    return Problem(
        code="app.fault",
        title=tr("Something in the app went wrong"),
        cause=f"{type(error).__name__}: {error}",
        place=place,
        hint=tr("press c to copy the report, and send it to whoever maintains this cockpit"),
    )


def append_report(path: Path, report: str) -> None:
    """Append to a log that only its owner can read; a log over `LOG_BYTES` is kept once more and begun anew."""
    make_private(path.parent)
    open_private(path).close()
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="replace")
    try:
        record = logging.LogRecord("cockpit", logging.ERROR, "", 0, report, None, None)
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
        handler.emit(record)
    finally:
        handler.close()


def guard_handlers() -> None:
    """Have widgets, screens and the app go on with their next message after a handler of theirs has failed. Textual
    would leave them deaf."""
    dispatch = MessagePump._dispatch_message
    if getattr(dispatch, "guarded", False):
        return

    @wraps(dispatch)
    async def guarded(self: MessagePump, message: Message) -> None:
        try:
            await dispatch(self, message)
        except Exception as error:
            app = self if isinstance(self, App) else self.app
            if isinstance(message, (events.Compose, events.Mount)) or not isinstance(app, FaultTolerantApp):
                raise
            app.catch(error, self)

    guarded.guarded = True  # type: ignore[attr-defined]
    MessagePump._dispatch_message = guarded  # type: ignore[method-assign]


def guard_lists() -> None:
    """Have a list that has no room for a line ignore the keys that move by a page. Textual fails to find the cursor's
    line."""
    move = OptionList._move_page
    if getattr(move, "guarded", False):
        return

    @wraps(move)
    def guarded(self: OptionList, direction: Literal[-1, 1]) -> None:
        if self.scrollable_content_region:
            move(self, direction)

    guarded.guarded = True  # type: ignore[attr-defined]
    OptionList._move_page = guarded  # type: ignore[method-assign]


def is_on_removed(screen: Screen[Any], event: events.MouseEvent) -> bool:
    """Whether the pointer is on a widget that has left its screen, although the last layout still has it."""
    try:
        widget, _ = screen.get_widget_at(event.x, event.y)
    except NoWidget:
        return False
    return widget is not screen and widget.parent is None


def _screen_of(pump: MessagePump | None) -> Screen[Any] | None:
    if not isinstance(pump, Widget):
        return None
    return next((node for node in pump.ancestors_with_self if isinstance(node, Screen)), None)


def _failed_screen(error: BaseException) -> Screen[Any] | None:
    """The screen of the widget in which it happened. A screen also draws those below it, so the pump says less."""
    owners = [frame.f_locals.get("self") for frame in _frames(error)]
    screens = (_screen_of(owner) for owner in reversed(owners) if isinstance(owner, Widget))
    return next((screen for screen in screens if screen is not None), None)


def _is_removed(error: BaseException) -> bool:
    """Whether a widget that took part, or one around it, is being removed from the app or has been."""
    owners = [frame.f_locals.get("self") for frame in _frames(error)]
    nodes = [node for owner in owners if isinstance(owner, Widget) for node in owner.ancestors_with_self]
    return any(isinstance(node, Widget) and (node._closing or node._closed or node._pruning) for node in nodes)


def _walk(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__)


def _frames(error: BaseException) -> Iterator[FrameType]:
    return (frame for frame, _ in _walk(error))


def _is_ours(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in ("cockpit", "engine") and frame.f_code.co_filename != __file__


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_globals.get('__name__')}:{line} in {frame.f_code.co_name}"
