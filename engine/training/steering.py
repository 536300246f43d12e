"""Commands to a running job, taken by all ranks at one step boundary, and the settings that they may change."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import threading
from collections import deque
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.protocol.messages import Instruction
from engine.protocol.profile import Profile
from engine.workers.link import Link

SETTABLE = (
    "training.learning_rate",
    "training.max_grad_norm",
    "training.max_steps",
    "evaluation.every_steps",
    "checkpoint.every_steps",
)
STACKS = signal.SIGUSR1
"""Makes a rank write the stacks of all its threads to its log, whatever it hangs in."""


class Inbox:
    """Instructions on their way from the link's thread to the next boundary. `stacks` does not wait for one."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.pids: list[int] = [os.getpid()]
        """All ranks' processes, once known."""
        self.step = 0
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
        for instruction in self._link.instructions():
            if instruction.name == "stacks":
                for pid in self.pids:
                    os.kill(pid, STACKS)
                self._link.answer(instruction, step=self.step)
            else:
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


def store(path: Path, submitted: Profile, live: Profile) -> None:
    """Keep with a checkpoint what has been changed since the run was submitted."""
    pairs = {key: [setting(submitted, key), setting(live, key)] for key in SETTABLE}
    path.write_text(json.dumps({key: pair for key, pair in pairs.items() if pair[0] != pair[1]}))


def replay(path: Path, submitted: Profile) -> Profile:
    """The profile as it stood at a checkpoint. A setting that the profile itself has changed since is left alone."""
    live = submitted
    for key, (before, after) in json.loads(path.read_text()).items():
        if setting(submitted, key) == before:
            live = changed(live, key, after)
    return live
