"""Saving a conversation with all its branches, and opening a saved one, for the chat screen."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from textual import work

from cockpit.connection.chat_target import ChatTarget
from cockpit.connection.drafts import CHAT
from cockpit.language.translate import tr
from cockpit.screens.base import opens_dialog
from cockpit.screens.chat_targets import MAX_TARGETS
from cockpit.screens.target_choices import list_saved_chats
from cockpit.screens.vote import VoteScreen
from cockpit.state.chat_tree import ChatTree, Turn, dump_tree, parse_tree
from cockpit.widgets.confirm import Confirm
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
        self._saved = self.chat
        """The conversation as it was last saved or opened."""

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
            self.notify(tr("there is nothing to save yet"), severity="warning")
            return
        name = self._chat_name or _file_name(self.chat.turns[0].text)
        text = tr("A name, stored in {chats}, or a path", chats=self.app.home.chats)
        answer = await self.app.push_screen_wait(Prompt(tr("Save the conversation"), text, name))
        if not answer:
            return
        path = _file_path(answer, self.app.home.chats)
        if path.exists() and answer != self._chat_name:
            question = tr("{path} exists. It is another conversation.", path=path)
            if not await self.app.push_screen_wait(Confirm(tr("Replace the file?"), question, {"y": tr("replace it")})):
                return
        if await self._write(path):
            self._chat_name = answer
            self.notify(str(path), title=tr("Saved"))

    async def _write(self, path: Path) -> bool:
        """Write the conversation. Returns False after showing why it could not be."""
        tree = self.chat
        try:
            make_private(path.parent)
            await asyncio.to_thread(write_private, path, self._document(tree).encode())
        except OSError as error:
            self.notify(f"{path}: {error.strerror}", title=tr("Not saved"), severity="error")
            return False
        self._saved = tree
        if self.chat is tree:
            self.app.drafts.drop(CHAT, "")
        return True

    def _document(self, tree: ChatTree) -> str:
        targets = [target.target for target in self.targets]
        return dump_tree(tree, targets=targets, settings=self._quiet_settings())

    def _quiet_settings(self) -> dict[str, Any]:
        try:
            return self.query_one(Sampling).settings()
        except ValueError:  # a field that is being typed
            return {}

    # ── drafts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def chat_changed(self) -> None:
        if not self.is_mounted:
            return
        if self.chat.turns and self.chat is not self._saved:
            self.app.drafts.keep(CHAT, "", document=self._document(self.chat), name=self._chat_name)
        else:
            self.app.drafts.drop(CHAT, "")

    async def keep_old(self) -> bool:
        """Save a conversation that has not been saved, under a name of its own, before another takes its place.
        Returns False when it could not be."""
        if not self.chat.turns or self.chat is self._saved:
            return True
        name = self._chat_name or _file_name(self.chat.turns[0].text)
        path, number = _file_path(name, self.app.home.chats), 2
        while path.exists() and not self._chat_name:
            path, number = _file_path(f"{name}-{number}", self.app.home.chats), number + 1
        if not await self._write(path):
            return False
        self.notify(tr("{stem}: ctrl+o opens it again", stem=path.stem), title=tr("The conversation is kept"))
        return True

    async def restore_draft(self) -> bool:
        """Go on with the conversation of an app that ended before it was saved. Returns whether there was one."""
        left = await asyncio.to_thread(self.app.drafts.take_over, CHAT, 1)
        if not left:
            return False
        try:
            tree, extra = parse_tree(str(left[0].get("document")))
        except ValueError:
            return False
        self._chat_name = str(left[0].get("name") or "")
        await self._show(tree, extra)
        self.notify(
            tr("ctrl+s saves it, ctrl+n begins another"), title=tr("The last conversation was not saved: it is back")
        )
        return True

    @opens_dialog
    @work(exclusive=True, group="save")
    async def action_open(self) -> None:
        """Continue a saved conversation. The targets stay; without any, those of the conversation are loaded."""
        if self.refuse_while_busy():
            return
        picker = Picker(tr("Open a conversation"), tr("a name, or a path"), list_saved_chats(self.app.home.chats))
        if not (answer := await self.app.push_screen_wait(picker)):
            return
        path = _file_path(answer, self.app.home.chats)
        try:
            tree, extra = parse_tree(await asyncio.to_thread(path.read_text, encoding="utf-8"))
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            self.notify(f"{path}: {cause}", title=tr("Not opened"), severity="error")
            return
        if not await self.keep_old():
            return
        self._saved, self._chat_name = tree, answer
        await self._show(tree, extra)
        self.action_write()

    async def _show(self, tree: ChatTree, extra: dict[str, Any]) -> None:
        """Show another conversation. The targets stay; without any, those of the conversation are loaded later."""
        self.chat = tree
        self._edit(None)
        self.query_one(Sampling).fill({**extra.get("settings", {}), "system": tree.system})
        await self.conversation.clear("")
        await self.conversation.show(tree)
        if not self.targets and extra.get("targets"):
            self.targets = [ChatTarget(self.app, str(target)) for target in extra["targets"][:MAX_TARGETS]]
            self.update_columns()
            self.show_status(", ".join(target.target for target in self.targets), tr("loads with the next message"))


def _file_name(text: str) -> str:
    """A file name made from the first question."""
    return "-".join(re.findall(r"\w+", text.lower())[:6])[:48] or "chat"


def _file_path(name: str, folder: Path) -> Path:
    """A plain name means a file in `folder`; a name with a slash or `.json` is a path."""
    if "/" in name or name.endswith(".json"):
        return Path(name).expanduser().absolute()
    return folder / f"{name}.json"
