"""One engine of the app: of this host, or of another one behind a `Link`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cockpit import remote_names
from cockpit.state.app_state import AppState
from engine.protocol.messages import Problem

if TYPE_CHECKING:
    from cockpit.connection.link import Link
    from engine.protocol.async_client import AsyncClient

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a lost host is tried again; each try that fails doubles them."""


class Attachment:
    """A connection, the reduced state of its engine, and what depends on the engine's host."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[AsyncClient]],
        name: str = "",
        link: Link | None = None,
        selected: str | None = None,
    ) -> None:
        """`connect` is awaited for a client. `name` is shown, and empty for the only engine of this host. `selected` is
        the run to show."""
        self.connect, self.name, self.link = connect, name, link
        self.state = AppState(requested=selected)
        self.client: AsyncClient | None = None
        self.last_message = time.monotonic()
        self._failures = 0
        self._retry_at = 0.0
        self._asked = asyncio.Event()

    @property
    def directory(self) -> str:
        """The directory that relative paths of the engine's host are resolved against."""
        found = self.link and self.link.found
        return found.directory if found else str(Path.cwd())

    def locate(self, path: Path) -> Path:
        """What the user means by a path on the engine's host."""
        if path.parts[:1] == ("~",):
            path = Path(self.shell.get("HOME", "~"), *path.parts[1:])
        return Path(self.directory, path)

    @property
    def shell(self) -> Mapping[str, str]:
        """The variables of the shell from which jobs there take theirs."""
        found = self.link and self.link.found
        return found.environment if found else os.environ

    @property
    def is_here(self) -> bool:
        """Whether the engine's host is this one, so that its files can be read."""
        return self.link is None

    @property
    def command(self) -> str:
        """How the user calls the cockpit of the engine's host."""
        return self.link.command if self.link else remote_names.command

    @property
    def elsewhere(self) -> str:
        """The name of the engine's host; empty for this one."""
        return "" if self.is_here else self.name

    def resume_environment(self, directory: str) -> dict[str, str]:
        """The variables for resuming the run in `directory`. Blocks. Raises ProblemError."""
        from cockpit.connection.submission import resume_environment

        return self.link.resume_environment(directory) if self.link else resume_environment(directory)

    async def close(self) -> None:
        if self.link is not None:
            await asyncio.to_thread(self.link.close)
        if self.client is not None:
            await self.client.close()

    # ── trying again ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def seconds_left(self) -> int:
        """Until the next attempt to connect; 0 while one is under way."""
        return max(0, round(self._retry_at - time.monotonic()))

    def succeeded(self) -> None:
        self._failures = 0

    def is_news(self, problem: Problem) -> bool:
        """Whether the user is told of this problem: of each one of this host, and of another host's when it is not
        that of the last attempt."""
        last = self.state.problem
        return self.is_here or last is None or last.code != problem.code

    async def wait(self, usual: float) -> None:
        """Wait until the next attempt or until `retry`: `usual` seconds for an engine of this host, for another host
        longer after each attempt that failed."""
        seconds = usual if self.is_here else min(LONGEST_WAIT, FIRST_WAIT * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._retry_at = time.monotonic() + seconds
        self._asked.clear()
        try:
            await asyncio.wait_for(self._asked.wait(), seconds)
        except TimeoutError:
            pass
        self._retry_at = 0.0

    def retry(self) -> None:
        """Try at once."""
        self._asked.set()
