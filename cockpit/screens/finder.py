"""What `:` finds: actions of the screen, and things by their names. What was chosen lately comes first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

from textual.command import Hit, Hits, Provider

from cockpit.connection.engine_app import EngineApp
from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.files import list_profiles

RECENT = "find.recent"
"""The setting that keeps what was chosen, newest first."""
KEPT = 12
SHOWN = 60
"""Hits that a search shows at most: among thousands of runs nobody scrolls."""
AT_ONCE = 300
"""Things that are matched before the app may do something else."""
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
        return cast(EngineApp, self.app)

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
        found: dict[str, Entry] = {}
        for entry in self._entries():
            found.setdefault(entry.name, entry)
        recent = [found.pop(name) for name in self._recent if name in found]
        actions = {entry.name for entry in self._actions()}
        rest = [entry for name, entry in found.items() if name in actions]
        for at, entry in enumerate((*recent, *rest)):
            yield self._hit(1.0 - at / 1000, Content(entry.name), entry)

    async def search(self, query: str) -> Hits:
        await self._wait_for_files()
        found: list[tuple[float, Entry]] = []
        for at, entry in enumerate(self._entries()):
            if at % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            score = max(rate(query, entry.name), rate(query, entry.help, scattered=False) / 3)
            if score > 0:
                near = NEARER - self._recent.index(entry.name) / KEPT if entry.name in self._recent else 1.0
                found.append((score * near, entry))
        style = self.matcher(query).match_style
        for score, entry in sorted(found, key=lambda each: -each[0])[:SHOWN]:
            shown = Content(entry.name)
            for at in find_letters(query, entry.name):
                shown = shown.stylize(style, at, at + 1)
            yield self._hit(score, shown, entry)

    def _hit(self, score: float, shown: Content, entry: Entry) -> Hit:
        about = cast(str, Content(entry.help))  # as plain text: Textual would read a run's name as markup
        return Hit(score, shown, partial(self._choose, entry), entry.name, about)

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
            except Exception:  # noqa: BLE001 - a file that cannot be read: the rest is found all the same
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
            about = tr("run · {facts}", facts=" · ".join(filter(None, facts)))
            yield Entry(run.id, about, partial(app.open_run, run.id))
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

        await self.cockpit.run_action("app.go('profile')")
        screen = self.cockpit.screen
        if isinstance(screen, ProfileScreen):
            screen.form.go_to(key)

    async def _chat(self, target: str) -> None:
        from cockpit.screens.chat import ChatScreen

        await self.cockpit.run_action("app.go('chat')")
        screen = self.cockpit.screen
        if isinstance(screen, ChatScreen) and not screen.refuse_while_busy():
            screen.load(target)


# ── matching ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# Textual's matcher tries all ways in which the letters can lie in a text: for a word and a sentence, thousands.


def rate(query: str, text: str, *, scattered: bool = True) -> float:
    """How well a text matches, 0 if it does not. Words, their beginnings and letters that follow each other count
    most; unless `scattered`, the query has to stand in the text as it is."""
    if not scattered and query.strip().lower() not in text.lower():
        return 0.0
    at = find_letters(query, text)
    if not at:
        return 0.0
    groups = 1 + sum(one + 1 != other for one, other in pairwise(at))
    begins = sum(place == 0 or not text[place - 1].isalnum() for place in at)
    joined = 1 - (groups - 1) / len(at)
    whole = 1.0 if groups > 1 else 2.0 if len(at) == len(text) else 1.5
    return (len(at) + begins) * (1 + joined * joined) * whole


def find_letters(query: str, text: str) -> Sequence[int]:
    """Where the letters of a query lie in a text, close to each other; empty if they do not. Spaces may be anything."""
    low = text.lower()
    if len(low) != len(text):  # a few letters become two
        low = text
    words = query.lower().strip()
    if not words:
        return ()
    if words in low:
        places = [match.start() for match in re.finditer(re.escape(words), low)]
        start = min(places, key=lambda at: (at > 0 and low[at - 1].isalnum(), at))
        return range(start, start + len(words))
    letters = [letter for letter in words if not letter.isspace()]
    end = -1
    for letter in letters:
        end = low.find(letter, end + 1)
        if end < 0:
            return ()
    found: list[int] = []
    for letter in reversed(letters):  # back from the end, which brings them closer together
        end = low.rindex(letter, 0, end + 1)
        found.append(end)
        end -= 1
    return found[::-1]
