"""Commands to a running job, taken by all ranks at one step boundary, and the settings that they may change."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.config.profile import Profile
from engine.config.settable import SETTABLE
from engine.protocol.journal import Ledger
from engine.protocol.messages import Instruction
from engine.protocol.worker_link import Link

KEPT = (*SETTABLE, "training.epochs", "training.micro_batch", "training.accumulation")
"""What a checkpoint remembers of the settings: those, and what memory or a resume may change."""
_TOGETHER = (
    {"training.max_steps", "training.epochs"},
    {"training.micro_batch", "training.accumulation"},
)
"""Settings that mean something only together: who asks for one of them anew, asks for all."""
FILE = "steering.json"
"""In a checkpoint's `trainer/`: `store` writes it, `replay` reads it."""
SKIPPED = "skip"
"""Name of the ledger's entry whose `new` are the numbers of rows that are not trained any more."""
STACKS = signal.SIGUSR1
"""Makes a rank write the stacks of all its threads to its log, whatever it hangs in."""


CAME = "came"
"""Argument of a question for hot chat: when it came, as `perf_counter` tells."""


class Inbox:
    """Instructions on their way from the link's thread to the next boundary. `stacks` does not wait for one."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.pids: list[int] = [os.getpid()]
        """All ranks' processes, once known."""
        self.step = 0
        self.cancelled: set[str] = set()
        """Requests of hot chat that were given up; added to by the link's thread."""
        self._waiting: deque[Instruction] = deque()
        self._link: Link | None = None
        faulthandler.register(STACKS, all_threads=True)

    def connect(self, link: Link) -> None:
        """Take instructions from `link`, those too that came before this call."""
        self._link = link
        self.take_in()

    def take_in(self) -> None:
        """Called by the link's thread."""
        if self._link is None:
            return
        for instruction in self._link.take_instructions():
            if instruction.name == "stacks":
                for pid in self.pids:
                    os.kill(pid, STACKS)
                self._link.answer(instruction, step=self.step)
            else:
                if instruction.name == "generate":
                    instruction.arguments[CAME] = time.perf_counter()
                self._waiting.append(instruction)
                self.arrived.set()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> list[Instruction]:
        self.arrived.clear()
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken


def changed(profile: Profile, key: str, value: Any) -> Profile:
    """The profile with one setting replaced. Raises ValueError, in words, when it may not be, or not to that value."""
    if key not in SETTABLE:
        raise ValueError(f"{key} cannot change while a run is running; these can: {', '.join(SETTABLE)}")
    return replaced(profile, key, value)


def replaced(profile: Profile, key: str, value: Any) -> Profile:
    """The same for any setting."""
    name, _, field = key.partition(".")
    section = getattr(profile, name)
    try:
        section = type(section).model_validate(section.model_dump() | {field: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ")
        raise ValueError(f"{key} {message}, not {value!r}") from None
    return dataclasses.replace(profile, **{name: section})


def setting(profile: Profile, key: str) -> Any:
    name, _, field = key.partition(".")
    return getattr(getattr(profile, name), field)


def store(path: Path, submitted: Profile, live: Profile, skipped: Collection[int]) -> None:
    """Keep with a checkpoint the settings as they stand, what the submitted profile says of them, and the skipped rows."""
    document = {
        "submitted": {key: setting(submitted, key) for key in KEPT},
        "live": {key: setting(live, key) for key in KEPT},
        "skipped": sorted(skipped),
    }
    path.write_text(json.dumps(document))


def replay(path: Path, submitted: Profile, later: Sequence[Ledger] = ()) -> tuple[Profile, set[int]]:
    """Profile and skipped rows as they stood at a checkpoint, with the changes that the ledger holds `later` made too.

    A setting that the profile itself has changed since (`cockpit resume --set`) is left as the profile has it.
    """
    kept = json.loads(path.read_text())
    values: dict[str, Any] = kept["live"]
    skipped = set(kept["skipped"])
    for entry in later:
        if entry.name in KEPT:
            values[entry.name] = entry.new
        elif entry.name == SKIPPED:
            skipped |= set(entry.new)
    asked = {key for key in KEPT if setting(submitted, key) != kept["submitted"].get(key)}
    for group in _TOGETHER:
        if asked & group:
            asked |= group
    live = submitted
    for key, value in values.items():
        if key not in asked and key in KEPT:
            live = replaced(live, key, value)
    return live, skipped
