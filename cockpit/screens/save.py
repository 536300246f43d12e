"""Saving a conversation with all its branches, and opening a saved one, for the chat screen."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from textual import work

from cockpit.connection.chat_target import ChatTarget
from cockpit.screens.base import opens_dialog
from cockpit.screens.chat_targets import MAX_TARGETS
from cockpit.screens.target_choices import list_saved_chats
from cockpit.screens.vote import VoteScreen
from cockpit.state.chat_tree import Turn, dump_tree, parse_tree
from cockpit.widgets.picker import Picker
from cockpit.widgets.prompt import Prompt
from cockpit.widgets.sampling import Sampling
from engine.protocol.home import make_private, write_private


class SaveScreen(VoteScreen):
    """Adds saving and opening to a conversation."""

    def __init__(self) -> None:
        super().__init__()
        self._chat_name = ""
        """The name that the conversation was saved or opened under."""

    def _settings(self) -> dict[str, Any] | None:
        """The sampling settings; None after showing what is wrong with them."""
        raise NotImplementedError

    def _edit(self, turn: Turn | None) -> None:
        """Start editing a question; None stops."""
        raise NotImplementedError

    @opens_dialog
    @work(exclusive=True, group="save")
    async def action_save(self) -> None:
        """Write the conversation with all its branches to a file."""
        if not self.chat.turns:
            self.notify("there is nothing to save yet", severity="warning")
            return
        name = self._chat_name or _file_name(self.chat.turns[0].text)
        text = f"A name, stored in {self.app.home.chats}, or a path"
        if answer := await self.app.push_screen_wait(Prompt("Save the conversation", text, name)):
            path = _file_path(answer, self.app.home.chats)
            targets = [target.target for target in self.targets]
            settings = self._settings() or {}
            try:
                make_private(path.parent)
                document = dump_tree(self.chat, targets=targets, settings=settings)
                await asyncio.to_thread(write_private, path, document.encode())
            except OSError as error:
                self.notify(f"{path}: {error.strerror}", title="Not saved", severity="error")
                return
            self._chat_name = answer
            self.notify(str(path), title="Saved")

    @opens_dialog
    @work(exclusive=True, group="save")
    async def action_open(self) -> None:
        """Continue a saved conversation. The targets stay; without any, those of the conversation are loaded."""
        if self.refuse_while_busy():
            return
        picker = Picker("Open a conversation", "a name, or a path", list_saved_chats(self.app.home.chats))
        if not (answer := await self.app.push_screen_wait(picker)):
            return
        path = _file_path(answer, self.app.home.chats)
        try:
            tree, extra = parse_tree(await asyncio.to_thread(path.read_text, encoding="utf-8"))
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            self.notify(f"{path}: {cause}", title="Not opened", severity="error")
            return
        self.chat, self._chat_name = tree, answer
        self._edit(None)
        self.query_one(Sampling).fill({**extra.get("settings", {}), "system": tree.system})
        await self.conversation.clear("")
        await self.conversation.show(tree)
        if not self.targets and extra.get("targets"):
            self.targets = [ChatTarget(self.app, str(target)) for target in extra["targets"][:MAX_TARGETS]]
            self.update_columns()
            self.show_status(", ".join(target.target for target in self.targets), "loads with the next message")
        self.action_write()


def _file_name(text: str) -> str:
    """A file name made from the first question."""
    return "-".join(re.findall(r"\w+", text.lower())[:6])[:48] or "chat"


def _file_path(name: str, folder: Path) -> Path:
    """A plain name means a file in `folder`; a name with a slash or `.json` is a path."""
    if "/" in name or name.endswith(".json"):
        return Path(name).expanduser().absolute()
    return folder / f"{name}.json"
