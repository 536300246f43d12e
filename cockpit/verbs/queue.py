"""`cockpit queue`: list the waiting runs with what each waits for, and change their order."""

from __future__ import annotations

import argparse

import msgspec

from cockpit.language.translate import tr
from cockpit.state.run_queue import describe_wait, list_queue
from cockpit.verbs.output import emit, say, table
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import ListRuns, Reorder, Run, RunRef
from engine.protocol.states import QUEUED


def queue(options: argparse.Namespace) -> int:
    """Change the place or priority of a run where one is named, then list the queue."""
    with Client(Home.locate(options.home)) as client:
        if options.run:
            _change(client, options)
        elif options.priority is not None or _find_move(options):
            raise ValueError(tr("name the run that is to be moved: cockpit queue RUN --first"))
        waiting = list_queue(client.request("runs", ListRuns(state=QUEUED)).runs)
    if options.json:
        emit([_describe(run, waiting) for run in waiting])
    elif waiting:
        rows = [
            (str(run.position), run.id, str(run.priority), run.group or "–", describe_wait(run, waiting))
            for run in waiting
        ]
        table(("PLACE", "RUN", "PRIORITY", "GROUP", tr("WAITS FOR")), rows, names=1)
    else:
        say(tr("No run is waiting."))
    return 0


def _change(client: Client, options: argparse.Namespace) -> None:
    move = _find_move(options)
    if options.priority is None and not move:
        raise ValueError(
            tr("say where {run} is to go: --first, --last, --up, --down, --to N or --priority N", run=options.run)
        )
    run: Run = client.request("show", RunRef(run=options.run)).run
    if options.priority is not None:
        run = client.request("reorder", Reorder(run=run.id, priority=options.priority))
    if move:
        places = {"first": 1, "last": 1 << 30, "up": max(1, run.position - 1), "down": run.position + 1}
        run = client.request("reorder", Reorder(run=run.id, position=places.get(move) or max(1, options.to)))
    say(
        tr(
            "{id} is at place {position}, with priority {priority}",
            id=run.id,
            position=run.position,
            priority=run.priority,
        )
    )


def _find_move(options: argparse.Namespace) -> str:
    """The option that says where to; empty without one. Raises ValueError for several."""
    given = [name for name in ("first", "last", "up", "down") if getattr(options, name)]
    given += ["to"] if options.to is not None else []
    if len(given) > 1:
        raise ValueError(tr("--{first} and --{second} do not go together", first=given[0], second=given[1]))
    return given[0] if given else ""


def _describe(run: Run, waiting: list[Run]) -> dict[str, object]:
    return {
        "run": run.id,
        "position": run.position,
        "priority": run.priority,
        "group": run.group,
        "waits_for": describe_wait(run, waiting),
        "holders": [msgspec.structs.asdict(holder) for holder in run.holders],
    }
