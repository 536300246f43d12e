"""What an app looks like, in which language, and by which keys it is used: themes, the cells that are written, and the
user's keymap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from textual import events, on, work
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.driver import Driver
from textual.screen import Screen

from cockpit.connection.attachment import Attachment
from cockpit.connection.engine_app import EngineApp
from cockpit.frame import Frame, FrameUpdate
from cockpit.keymap import check_keys, read_keys
from cockpit.language.translate import LANGUAGES, current_language, tr
from cockpit.screens.base import opens_dialog
from cockpit.theme import COCKPIT, COCKPIT_LIGHT
from engine.protocol.home import Home

REOPEN = 75
"""The exit status with which the app asks to be opened anew: the language has been changed."""


class PaintedApp(EngineApp):
    """The theme is the one that was chosen last. Only cells that differ from what the terminal shows are written."""

    def __init__(
        self,
        home: Home,
        *,
        readonly: bool,
        selected: str | None,
        connect: Callable[[Home], Any],
        engines: Sequence[Attachment] = (),
    ) -> None:
        super().__init__(home, readonly=readonly, selected=selected, connect=connect, engines=engines)
        self.frame = Frame()
        self.register_theme(COCKPIT)
        self.register_theme(COCKPIT_LIGHT)
        theme = self.settings.read_early("theme", "cockpit")
        self.theme = theme if theme in self.available_themes else "cockpit"

    async def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, lambda theme: self.settings.set("theme", theme.name))
        self.set_timer(0.02, self._take_keys)

    def _take_keys(self) -> None:
        """Use the keys that the user has chosen."""
        if keys := read_keys(self.settings.get_mapping("keys")):
            self.set_keymap(keys)
            self.run_worker(self._check_keys(keys), name="keymap")

    async def _check_keys(self, keys: dict[str, str]) -> None:
        """Say which keys cannot be, or conflict. In a thread, because that imports all screens."""
        if wrong := await asyncio.to_thread(lambda: list(check_keys(keys, type(self)))):
            self.notify("\n".join(wrong[:6]), title=tr("Keys in settings.yaml"), severity="warning", timeout=12)

    @opens_dialog
    @work(group="language", exclusive=True)
    async def action_language(self) -> None:
        """Choose the language. The app opens anew in it, at the same screen and run."""
        from cockpit.widgets.picker import Choice, Picker

        if self.screen.is_modal:
            return
        choices = [Choice(code, name) for code, name in LANGUAGES.items()]
        chosen = await self.push_screen_wait(Picker(tr("Language · 语言"), tr("type to filter"), choices))
        if chosen is not None and chosen != current_language():
            self.settings.set("language", chosen)
            self.drafts.flush()
            self.exit(return_code=REOPEN)

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        if isinstance(renderable, (ChopsUpdate, LayoutUpdate)):
            renderable = FrameUpdate(renderable, self.frame)
        super()._display(screen, renderable)

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Resize):
            self.frame.forget()  # a terminal that was attached again has the old size, perhaps, but other contents
        await super().on_event(event)

    def _resume_signal(self) -> None:
        self.frame.forget()  # an editor has had the terminal
        super()._resume_signal()

    @on(Driver.SignalResume)
    def _resume_process(self) -> None:
        self.action_repaint()

    def action_repaint(self) -> None:
        """Write all cells anew: another program has written to the terminal, or a part did not arrive."""
        self.frame.forget()
        self.refresh(layout=True)
