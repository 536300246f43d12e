"""The waiting runs, and what each waits for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cockpit.language.translate import tr, tr_engine
from engine.protocol.messages import Run
from engine.protocol.states import QUEUED


def list_queue(runs: Iterable[Run]) -> list[Run]:
    """The runs that have a place in the queue, the next one first."""
    return sorted((run for run in runs if run.state == QUEUED and run.position), key=lambda run: run.position)


def describe_wait(run: Run, queue: Sequence[Run]) -> str:
    """What a queued run waits for: the engine knows it of those that it has tried to start, the others wait for the one
    before."""
    if run.reason:
        return tr_engine(run.reason)
    before = next((each for each in reversed(queue) if each.position < run.position), None)
    if before is None:
        return tr("starts next")
    ahead = sum(each.position < run.position for each in queue)
    return tr("waits until {id} has started", id=before.id) + (
        tr("; {ahead} runs are before it", ahead=ahead) if ahead > 1 else ""
    )


def describe_place(run: Run, queue: Sequence[Run]) -> str:
    """The place in the queue, with the priority where it has one: `place 2 of 5, priority 3`."""
    priority = tr(", priority {priority}", priority=run.priority) if run.priority else ""
    return tr("place {position} of {count}{priority}", position=run.position, count=len(queue), priority=priority)
