"""Handles keys one after the other, so that a key that is typed before a dialog or a screen has opened reaches it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from textual import events
from textual.app import App, ScreenStackError
from textual.errors import NoWidget
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.worker import NoActiveWorker, Worker, get_current_worker

PATIENCE = 3.0
"""Seconds that a key waits at most: for a dialog after the key that asked for it, and for a widget to handle a key. A
slow engine must not lock the keyboard."""
ESCAPE_PATIENCE = 0.25
"""Seconds after which Esc no longer waits for a dialog but calls it off."""
POLL = 0.005
"""Seconds between two looks at what no event reports."""
ROUNDS = 3
"""How often a key's way is gone: the key itself, the messages that its handlers post, and the messages of theirs."""
DECISIVE = frozenset({"enter", "escape"})
"""Keys that do something else each time, even if they changed nothing the last time."""
AT_ONCE = frozenset({"ctrl+c", "ctrl+q"})
"""Keys that wait for nothing: they leave the app."""


class KeyQueue:
    """Takes the events of keyboard and mouse, and gives the app the next one when the last key has been handled.

    Textual forwards a key to the widget that has the focus at that moment. A dialog opens some messages, or an answer
    of the engine, later than its key was pressed. Keys that arrive together, as over SSH, would act on the screen below
    it.
    """

    def __init__(self, app: App[Any], deliver: Callable[[events.Event], Awaitable[None]]) -> None:
        """`deliver` forwards one event. It is called by the app's own message loop."""
        self._app, self._deliver = app, deliver
        self._events: deque[events.Event] = deque()
        self._arrived = asyncio.Event()
        self._forwarder: Worker[None] | None = None
        self._busy = False
        self._expected: dict[Worker[Any], float] = {}
        """The workers that are about to open a dialog, and when each was started."""
        self._awaited: list[Screen[Any]] = []
        """The dialogs that a worker opens or has opened and whose answer it has not taken yet."""
        self._ready: Screen[Any] | None = None
        """The screen that keys can act on: it has its widgets, its focus and its layout."""
        self._repeated = ""
        """The last key, if it changed neither screen nor focus."""
        self._stuck: MessagePump | None = None
        """What has not handled a key within `PATIENCE`. Keys do not wait for it again before it has."""

    @property
    def idle(self) -> bool:
        """Whether all keys have been handled."""
        return not self._busy and not self._events

    def takes(self, event: events.Event) -> bool:
        """Whether `event` has to wait here."""
        if not isinstance(event, (events.InputEvent, events.Paste)) or event.is_forwarded:
            return False
        if isinstance(event, events.Key):
            return event.key not in AT_ONCE
        return not self.idle  # nothing overtakes a key

    def put(self, event: events.Event) -> None:
        self._events.append(event)
        self._arrived.set()
        if self._forwarder is None or self._forwarder.is_finished:
            self._forwarder = self._app.run_worker(self._forward(), name="keys", group="keys")

    # ── dialogs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def expect(self, worker: Worker[Any]) -> None:
        """Have keys wait until `worker` has opened a dialog or has ended."""
        self._expected[worker] = time.monotonic()

    @contextmanager
    def awaiting(self, dialog: Screen[Any]) -> Iterator[None]:
        """While a worker opens `dialog` and waits for its answer. Keys wait until the dialog is there; and, once it is
        closed, until the worker goes on, because it may open another."""
        try:
            self._expected.pop(get_current_worker(), None)
        except NoActiveWorker:
            pass
        self._awaited.append(dialog)
        try:
            yield
        finally:
            if dialog in self._awaited:
                self._awaited.remove(dialog)

    def _dialog_since(self) -> float | None:
        """Since when a dialog is about to open or its answer about to be taken; None if neither is so."""
        self._expected = {worker: since for worker, since in self._expected.items() if not worker.is_finished}
        if self._expected:
            return min(self._expected.values())
        return None if all(map(self._is_open, self._awaited)) else time.monotonic()

    def _is_open(self, dialog: Screen[Any]) -> bool:
        return any(dialog in stack for stack in self._app._screen_stacks.values())

    def _call_off(self) -> bool:
        """If Esc is in the queue, drop it with the keys before it and cancel the workers that were to open a dialog: an
        open dialog would have been closed by it in the same way."""
        at = next((at for at, event in enumerate(self._events) if _is_escape(event)), None)
        if at is None:
            return False
        for _ in range(at + 1):
            self._events.popleft()
        for worker in self._expected:
            worker.cancel()
        self._expected.clear()
        return True

    # ── forwarding ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _forward(self) -> None:
        while True:
            self._busy = False
            while not self._events:
                self._arrived.clear()
                await self._arrived.wait()
            self._busy = True
            try:
                await self._until_dialog_is_open()
                await self._until_screen_is_ready()
                if self._events:
                    await self._handle(self._take())
            except ScreenStackError:  # the app is leaving
                self._events.clear()

    def _take(self) -> list[events.Event]:
        """Take the next event; with text that the focused widget takes in, the text behind it; and with a key that is
        held and changes neither screen nor focus, its repetitions. One by one, each would be painted."""
        first = self._events.popleft()
        taken = [first]
        while self._events and self._belongs_together(first, self._events[0]):
            taken.append(self._events.popleft())
        return taken

    def _belongs_together(self, first: events.Event, other: events.Event) -> bool:
        if not (isinstance(first, events.Key) and isinstance(other, events.Key)):
            return False
        focused = self._app.focused
        if focused is not None and focused.check_consume_key(first.key, first.character):
            return focused.check_consume_key(other.key, other.character)
        return first.key == other.key == self._repeated

    async def _until_dialog_is_open(self) -> None:
        end = time.monotonic() + PATIENCE
        while (since := self._dialog_since()) is not None:
            now = time.monotonic()
            if now > min(since + PATIENCE, end):
                self._expected.clear()
                self._awaited = list(filter(self._is_open, self._awaited))
                return
            if now > since + ESCAPE_PATIENCE and self._call_off():
                return
            await asyncio.sleep(POLL)

    async def _until_screen_is_ready(self) -> None:
        """Wait until keys can act on the screen on top."""
        end = time.monotonic() + PATIENCE
        while self._app.is_running and (screen := self._app.screen) is not self._ready:
            while not screen.is_mounted and time.monotonic() < end:
                await asyncio.sleep(POLL)
            for _ in range(2):  # handlers of the first round ask the app for the focus
                await self._until_called(screen, screen.call_later)
                await self._until_called(self._app, self._app.call_later)
            await self._until_called(screen, screen.call_after_refresh)  # without a layout nothing scrolls
            self._ready = screen

    async def _handle(self, taken: list[events.Event]) -> None:
        """Forward these events, and wait until they and what they caused have been handled."""
        before = self._app.screen, self._app.focused
        way: list[MessagePump] = []
        forwarded = asyncio.get_running_loop().create_future()

        async def deliver() -> None:
            try:
                way.extend(self._way(taken[0]))
                for event in taken:
                    await self._deliver(event)
            finally:
                if not forwarded.done():
                    forwarded.set_result(None)

        if not self._app.call_later(deliver):
            return
        await asyncio.wait([forwarded], timeout=PATIENCE)
        for _ in range(ROUNDS):
            for pump in way:
                await self._until_called(pump, pump.call_later)
        key = taken[0].key if isinstance(taken[0], events.Key) else ""
        unchanged = self._app.is_running and (self._app.screen, self._app.focused) == before
        self._repeated = key if unchanged and self._dialog_since() is None and key not in DECISIVE else ""

    def _way(self, event: events.Event) -> list[MessagePump]:
        """What handles `event`, in order: a widget and all that it is in, up to the app."""
        if isinstance(event, events.MouseMove):
            return []
        target: MessagePump | None = self._app.focused or self._app.screen
        if isinstance(event, events.MouseEvent):
            try:
                target, _ = self._app.get_widget_at(event.x, event.y)
            except NoWidget:
                return []
        return list(target.ancestors_with_self)  # type: ignore[union-attr]

    async def _until_called(self, pump: MessagePump, call: Callable[[Callable[[], None]], bool]) -> None:
        """Wait until `pump`, which `call` asks for it, has handled the messages that it has now."""
        if pump is self._stuck:
            return
        called = asyncio.get_running_loop().create_future()

        def finish() -> None:
            if self._stuck is pump:
                self._stuck = None
            if not called.done():
                called.set_result(None)

        if not call(finish):
            return
        end = time.monotonic() + PATIENCE
        while not called.done() and pump.is_running:  # what is removed no longer answers
            await asyncio.wait([called], timeout=0.05)
            if time.monotonic() > end and not called.done():
                self._stuck = pump
                return


def _is_escape(event: events.Event) -> bool:
    return isinstance(event, events.Key) and event.key == "escape"
