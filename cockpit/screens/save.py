"""Saving a conversation with all its branches, and going on with a saved one, for the chat screen."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from textual import work

from cockpit.connection.chat_target import Talker
from cockpit.screens.target_choices import chats
from cockpit.screens.vote import JudgingScreen
from cockpit.state import chat_tree
from cockpit.state.chat_tree import Turn
from cockpit.widgets.picker import Picker
from cockpit.widgets.prompt import Prompt
from cockpit.widgets.sampling import Sampling

MOST = 4
"""Targets side by side."""


class KeepingScreen(JudgingScreen):
    """Subclasses say how they sample, and what changes with the number of targets."""

    def __init__(self) -> None:
        super().__init__()
        self._saved = ""
        """The name that the conversation was saved or opened under."""

    def _settings(self) -> dict[str, Any] | None:
        raise NotImplementedError

    def _arranged(self) -> None:
        raise NotImplementedError

    def _edit(self, turn: Turn | None) -> None:
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        return any(talker.request for talker in self.talkers)

    @work(exclusive=True, group="keep")
    async def action_save(self) -> None:
        """Write the conversation with all its branches to a file."""
        if not self.said.turns:
            self.notify("nothing has been said yet", severity="warning")
            return
        name = self._saved or _slug(self.said.turns[0].said)
        text = f"A name, kept in {self.app.home.chats}, or a path"
        if answer := await self.app.push_screen_wait(Prompt("Save the conversation", text, name)):
            path = _place(answer, self.app.home.chats)
            targets = [talker.target for talker in self.talkers]
            settings = self._settings() or {}
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                written = chat_tree.written(self.said, targets=targets, settings=settings)
                await asyncio.to_thread(path.write_text, written, encoding="utf-8")
            except OSError as error:
                self.notify(f"{path}: {error.strerror}", title="Not saved", severity="error", markup=False)
                return
            self._saved = answer
            self.notify(str(path), title="Saved", markup=False)

    @work(exclusive=True, group="keep")
    async def action_open(self) -> None:
        """Go on with a conversation that was saved. The targets stay; without any, its own are loaded."""
        if self.busy:
            self.notify("Esc stops the present reply first", severity="warning")
            return
        picker = Picker("Open a conversation", "a name, or a path", chats(self.app.home.chats))
        if not (answer := await self.app.push_screen_wait(picker)):
            return
        path = _place(answer, self.app.home.chats)
        try:
            tree, beside = chat_tree.read(await asyncio.to_thread(path.read_text, encoding="utf-8"))
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            self.notify(f"{path}: {cause}", title="Not opened", severity="error", markup=False)
            return
        self.said, self._saved = tree, answer
        self._edit(None)
        self.query_one(Sampling).take({**beside.get("settings", {}), "system": tree.system})
        await self.conversation.clear("")
        await self.conversation.show(tree)
        if not self.talkers and beside.get("targets"):
            self.talkers = [Talker(self.app, str(target)) for target in beside["targets"][:MOST]]
            self._arranged()
            self._meter(", ".join(talker.target for talker in self.talkers), "the next message loads it")
        self.action_write()


def _slug(text: str) -> str:
    """A file's name from what was said first."""
    return "-".join(re.findall(r"\w+", text.lower())[:6])[:48] or "chat"


def _place(name: str, folder: Path) -> Path:
    """A bare name lies in `folder`; anything with a slash or an ending is a path."""
    if "/" in name or name.endswith(".json"):
        return Path(name).expanduser().absolute()
    return folder / f"{name}.json"
