"""From the rows on the Data screen to a profile that trains on them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from textual import work

from cockpit.connection.json_verb import read_json
from cockpit.language.translate import tr
from cockpit.profiles.files import free_path, user_folder, write_profile
from cockpit.screens.base import opens_dialog
from cockpit.screens.review import ReviewScreen
from cockpit.screens.row_browser import REJECTED as REJECTED_ROWS
from cockpit.widgets.draft_dialog import REJECTED, WRITE, DraftDialog
from engine.config.forecasts import summarize
from engine.protocol.text import name_after


class DraftingScreen(ReviewScreen):
    """Adds `train`: train on this."""

    @opens_dialog
    @work(exclusive=True, group="open")
    async def action_train(self) -> None:
        """Have the worker write a profile from the open rows, show what it found, and go to the profile."""
        if not self.summary:
            self.notify(tr("o opens a data file first"), severity="warning")
            return
        if self.request:  # tokens are being counted, and are counted again
            await self.worker.cancel(self.request)
        self.show_status(tr("writing a profile …"), tr("Esc stops"))
        facts = await self.ask("draft", {"name": name_after(self.data_name)})
        await self.show_current()
        if facts is not None:
            await self._offer(facts)

    async def _offer(self, facts: dict[str, Any]) -> None:
        path = free_path(user_folder(self.app.home) / f"{facts['name']}.yaml")
        dialog = DraftDialog(facts, str(path), self._forecast if self.app.engine.is_here else None)
        answer = await self.app.push_screen_wait(dialog)
        if answer == REJECTED:
            self.select_part(REJECTED_ROWS)
            self.view = "conversation"
            self.action_go_to(0)
        elif answer == WRITE:
            await self._write(path, dialog.text)

    async def _forecast(self, text: str) -> str:
        """The memory and time of a profile. Takes seconds, as a process of its own traces a step."""
        arguments: dict[str, Any] = {
            "text": text,
            "directory": "/",
            "profile": "draft",
            "overrides": [],
            "card": None,
            "cards": None,
        }
        worker = [sys.executable, "-P", "-m", "engine.workers.forecast", "forecast", json.dumps(arguments)]
        found = await read_json([*worker, "--home", str(self.app.home.root), "--json"])
        return summarize(found) if isinstance(found, dict) and "host_bytes" in found else ""

    async def _write(self, path: Path, text: str) -> None:
        try:
            await asyncio.to_thread(write_profile, path, text, self.app.home)
        except OSError as error:
            self.notify(tr("cannot write {path}: {strerror}", path=path, strerror=error.strerror), severity="error")
            return
        await self.app.open_profile(path)
