"""What `:` finds: actions of the screen, and things by their names. What was chosen lately comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from textual.command import Hit, Hits, Provider

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.files import list_profiles

if TYPE_CHECKING:
    from cockpit.connection.engine_app import EngineApp

RECENT = "find.recent"
"""The setting that keeps what was chosen, newest first."""
KEPT = 12
SHOWN = 60
"""Hits that a search shows at most: among thousands of runs nobody scrolls."""
NEARER = 2.0
"""What a thing that was chosen lately is worth beside another that matches as well."""


class Entry(NamedTuple):
    """One thing to find. `name` is what is matched and remembered."""

    name: str
    help: str
    open: Callable[[], Awaitable[object] | object]


class Finder(Provider):
    """The palette's only provider."""

    @property
    def cockpit(self) -> EngineApp:
        return cast("EngineApp", self.app)

    async def startup(self) -> None:
        self._read: list[Entry] = []
        self._recent = [name for name in self.cockpit.settings.get(RECENT, [""]) if name]
        self._files = asyncio.create_task(asyncio.to_thread(self._read_files))

    async def shutdown(self) -> None:
        self._files.cancel()

    async def discover(self) -> Hits:
        """Without a word: what was chosen lately, then the actions of the screen."""
        if self._recent:
            await self._wait_for_files()
        found = {entry.name: entry for entry in self._entries()}
        recent = [found.pop(name) for name in self._recent if name in found]
        actions = {entry.name for entry in self._actions()}
        rest = [entry for name, entry in found.items() if name in actions]
        for at, entry in enumerate((*recent, *rest)):
            yield Hit(1.0 - at / 1000, Content(entry.name), partial(self._choose, entry), entry.name, entry.help)

    async def search(self, query: str) -> Hits:
        await self._wait_for_files()
        matcher = self.matcher(query)
        found: list[tuple[float, Entry]] = []
        for entry in self._entries():
            score = max(matcher.match(entry.name), matcher.match(entry.help) / 3)
            if score > 0:
                near = NEARER - self._recent.index(entry.name) / KEPT if entry.name in self._recent else 1.0
                found.append((score * near, entry))
        for score, entry in sorted(found, key=lambda each: -each[0])[:SHOWN]:
            shown = matcher.highlight(entry.name)
            yield Hit(score, shown, partial(self._choose, entry), entry.name, entry.help)

    async def _choose(self, entry: Entry) -> None:
        recent = [entry.name, *(name for name in self._recent if name != entry.name)]
        self.cockpit.settings.set(RECENT, recent[:KEPT])
        result = entry.open()
        if isinstance(result, Awaitable):
            await result

    async def _wait_for_files(self) -> None:
        if not self._read:
            try:
                self._read = await asyncio.wait_for(asyncio.shield(self._files), 2.0)
            except (OSError, TimeoutError):
                return

    # ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────

    def _entries(self) -> Iterator[Entry]:
        yield from self._actions()
        yield from self._runs()
        yield from self._read
        yield from self._hosts()

    def _actions(self) -> Iterator[Entry]:
        for command in self.cockpit.get_system_commands(self.screen):
            yield Entry(command.title, command.help, command.callback)

    def _runs(self) -> Iterator[Entry]:
        app = self.cockpit
        for run in sorted(app.state.runs.values(), key=lambda run: -run.created):
            loss = run.metrics.get("train/loss")
            facts = [run.state, run.name, tr("loss {loss:.4g}", loss=loss) if loss is not None else ""]
            yield Entry(
                run.id, tr("run · {filter}", filter=" · ".join(filter(None, facts))), partial(app.open_run, run.id)
            )
            history = app.state.histories.get(run.id)
            for entry in history.checkpoints if history else ():
                target = f"{run.id}@{entry['step']}"
                yield Entry(target, tr("checkpoint · talk to it in Chat"), partial(self._chat, target))

    def _hosts(self) -> Iterator[Entry]:
        app = self.cockpit
        if app.engines[0].name:
            for at, engine in enumerate(app.engines):
                yield Entry(engine.name, tr("host · show its screens"), partial(app.go_to_host, at))

    def _read_files(self) -> list[Entry]:
        """The profiles and the settings of a profile; in a thread, because this imports and reads."""
        from engine.config.form import list_fields

        app = self.cockpit
        found = [
            Entry(file.name, tr("profile · {place}", place=tr(file.place)), partial(app.open_profile, file.path))
            for file in list_profiles(app.home, Path.cwd())
        ]
        for field in list_fields():
            found.append(
                Entry(field.key, tr("setting · {help}", help=field.help)[:80], partial(self._setting, field.key))
            )
        return found

    async def _setting(self, key: str) -> None:
        """Go to a setting in the form of the profile that is open."""
        from cockpit.screens.profile import ProfileScreen

        await self.cockpit.action_go("profile")
        screen = self.cockpit.screen
        if isinstance(screen, ProfileScreen):
            screen.form.go_to(key)

    async def _chat(self, target: str) -> None:
        from cockpit.screens.chat import ChatScreen

        await self.cockpit.action_go("chat")
        screen = self.cockpit.screen
        if isinstance(screen, ChatScreen) and not screen.refuse_while_busy():
            screen.load(target)
