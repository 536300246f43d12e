"""Training sessions in this process: the real session, journal and checkpoints, without the seconds that a worker needs
to start."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config.profile import parse
from engine.protocol.home import Home
from engine.protocol.journal import AnyEntry, Metrics, Start, read
from engine.protocol.messages import Answered, Instruction, Problem
from engine.protocol.worker_link import Link
from engine.training.inbox import Inbox
from engine.training.reporter import Reporter
from tests.training.harness import PROFILE

Orders = Callable[["Here"], list[tuple[str, dict[str, Any]]]]
"""Asked at every boundary and in every turn of a pause: commands to give now, each a name with arguments."""


class Here:
    """A run. `train` is one attempt; `orders` gives commands, which are taken as those from the supervisor are."""

    def __init__(self, folder: Path, name: str, prepared: dict[str, Any], *changes: str) -> None:
        self.run = Home(folder).run(name)
        self.run.path.mkdir(parents=True)
        self.run.prepared.write_text(json.dumps(prepared))
        self.changes = changes
        self.prepared = prepared
        self.attempts = 0
        self.answers: list[Answered] = []

    def train(self, *changes: str, from_step: int | None = None, orders: Orders = lambda run: []) -> tuple[str, int]:
        """Changes are those of a `resume --set`."""
        from engine.training import session

        self.attempts += 1
        self.changes += changes
        profile = parse(PROFILE.format(base=self.prepared["base"]), "test", Path("/"), self.changes)
        link = _Link(self, f"ipc://{self.run.path}/nobody", self.run.id, self.attempts)
        inbox = _Inbox(self, orders)
        inbox.connect(link)
        with contextlib.closing(link), contextlib.closing(Reporter(self.run, self.attempts, link, 0)) as reporter:
            return session.train(self.run, self.attempts, profile, self.run.path, from_step, reporter, inbox)

    def entries(self, kind: type[AnyEntry]) -> list[Any]:
        return [entry for entry, _ in read(self.run.events) if isinstance(entry, kind)]

    def series(self, name: str) -> dict[int, float | None]:
        """A metric by step, a later value in an earlier one's place."""
        return {entry.step: entry.values[name] for entry in self.entries(Metrics)}

    def step(self) -> int:
        """Where the run stands."""
        told = [entry.step for entry, _ in read(self.run.events) if isinstance(entry, (Metrics, Start))]
        return told[-1] if told else 0


class _Link(Link):
    def __init__(self, run: Here, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._run = run

    def answer(
        self, instruction: Instruction, *, step: int = 0, result: object = None, problem: Problem | None = None
    ) -> None:
        self._run.answers.append(Answered(id=instruction.id, step=step, result=result, problem=problem))


class _Inbox(Inbox):
    def __init__(self, run: Here, orders: Orders) -> None:
        super().__init__()
        self._run, self._orders = run, orders
        self._turns = 0
        self.arrived.wait = self._no_time  # type: ignore[method-assign]

    def _no_time(self, timeout: float | None = None) -> bool:
        """A turn of a pause."""
        self._turns += 1
        assert self._turns < 100, "the run is paused, and no order comes"
        return True

    def __len__(self) -> int:
        for name, arguments in self._orders(self._run):
            self._waiting.append(Instruction(id=name, name=name, arguments=arguments))
        return super().__len__()

    def take_all(self) -> list[Instruction]:
        len(self)
        return super().take_all()


def at(step: int, name: str, **arguments: Any) -> Orders:
    """One command, once, when `step` is reached."""
    given: list[int] = []

    def orders(run: Here) -> list[tuple[str, dict[str, Any]]]:
        if given or run.step() < step:
            return []
        given.append(step)
        return [(name, arguments)]

    return orders


def one_after_another(*orders: Orders) -> Orders:
    return lambda run: [each for order in orders for each in order(run)]
