"""Drafts: what was typed and is not saved yet, on disk from the first keystroke, so that no crash and no kill loses it.

Each app has files of its own; their names say which. The drafts of an app that has ended are taken over by the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.protocol.home import Home, host_name, make_private
from engine.protocol.process import read_identity

PERIOD = 0.5
"""Seconds between two writes of one draft while somebody is typing. The first change is written at once."""
ELSEWHERE = 3600.0
"""Seconds without a change after which the draft of an app on another host counts as left behind."""
PROFILE, CHAT, PROMPT = "profile", "chat", "prompt"
"""Kinds of drafts: an edited profile by its path, a conversation, and the prompt that is being typed."""
_OWNER = re.compile(r"\.([A-Za-z0-9.-]+)\.(\d+)-(\d*)\.json")


class Drafts:
    """The drafts of this app. Nothing here raises for a disk that is full or read-only: `failed` is called once."""

    def __init__(self, home: Home, later: Callable[[float, Callable[[], None]], object]) -> None:
        """`later(seconds, call)` has something called later."""
        self._folder, self._later = home.drafts, later
        ticks = read_identity(os.getpid()).rpartition("/")[2]
        self._owner = f"{host_name()}.{os.getpid()}-{ticks}"
        self._contents: dict[tuple[str, str], dict[str, Any]] = {}
        self._waiting: set[tuple[str, str]] = set()
        self._written: dict[tuple[str, str], float] = {}
        self.failed: Callable[[str], object] = lambda reason: None
        self._has_failed = False

    def keep(self, kind: str, key: str, **content: Any) -> None:
        """Keep this draft, in place of an earlier one of the same kind and key."""
        place = (kind, key)
        self._contents[place] = {"kind": kind, "key": key, "time": time.time(), **content}
        wait = self._written.get(place, 0.0) + PERIOD - time.monotonic()
        if wait <= 0:
            self._write(place)
        elif place not in self._waiting:
            self._waiting.add(place)
            self._later(wait, self.flush)

    def drop(self, kind: str, key: str) -> None:
        """It is saved, or not wanted any more."""
        place = (kind, key)
        self._waiting.discard(place)
        if self._contents.pop(place, None) is not None:
            self._path(place).unlink(missing_ok=True)

    def drop_all(self) -> None:
        for kind, key in list(self._contents):
            self.drop(kind, key)

    def flush(self) -> None:
        """Write what waits to be written."""
        for place in list(self._waiting):
            self._write(place)

    def kept(self) -> list[dict[str, Any]]:
        """This app's drafts."""
        return list(self._contents.values())

    def take_over(self, kind: str, limit: int | None = None) -> list[dict[str, Any]]:
        """The drafts of apps that have ended, the newest first. They are this app's from now on."""
        found: list[dict[str, Any]] = []
        for content, path in sorted(self._left_behind(kind), key=lambda each: -float(each[0]["time"]))[:limit]:
            place = (kind, content["key"])
            if place in self._contents:
                continue  # an older draft of the same thing stays for the next app
            try:
                path.rename(self._path(place))
            except OSError:
                continue  # another app was faster
            self._contents[place] = content
            found.append(content)
        return found

    def _left_behind(self, kind: str) -> list[tuple[dict[str, Any], Path]]:
        found = []
        for path in self._folder.glob(f"{kind}-*.json"):
            try:
                if not self._is_left(path):
                    continue
                content = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
                if content["kind"] == kind and isinstance(content["key"], str) and float(content["time"]):
                    found.append((content, path))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged: it stays where it is
        return found

    def _is_left(self, path: Path) -> bool:
        match = _OWNER.search(path.name)
        if match is None:
            return False
        host, pid, ticks = match.groups()
        if host != host_name():
            return time.time() - path.stat().st_mtime > ELSEWHERE
        return int(pid) != os.getpid() and read_identity(int(pid)).rpartition("/")[2] != ticks

    def _path(self, place: tuple[str, str]) -> Path:
        kind, key = place
        return self._folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.{self._owner}.json"

    def _write(self, place: tuple[str, str]) -> None:
        self._waiting.discard(place)
        path, text = self._path(place), json.dumps(self._contents[place], ensure_ascii=False)
        temporary = path.with_suffix(".new")
        try:
            make_private(self._folder)
            # Without fsync: that would take tens of milliseconds of each keystroke on some disks.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="surrogatepass") as file:
                file.write(text)
            temporary.replace(path)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self.failed(f"{path.parent}: {error.strerror or error}")
        self._written[place] = time.monotonic()
