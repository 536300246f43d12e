"""The user's own words about runs: tags, a note, a pin, a group."""

from __future__ import annotations

import argparse

from cockpit.language.translate import tr
from cockpit.state.formatting import counted
from cockpit.verbs.output import emit
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Label, ListRuns, Run


def tag(options: argparse.Namespace) -> int:
    """Add and remove tags; without any, print those that the run has."""
    return _label(options, Label(run=options.run, add=options.tags, remove=options.remove))


def note(options: argparse.Namespace) -> int:
    """Replace the note; without a text, print it. An empty text removes it."""
    return _label(options, Label(run=options.run, note=None if options.text is None else options.text))


def pin(options: argparse.Namespace) -> int:
    return _label(options, Label(run=options.run, pinned=not options.off))


def group(options: argparse.Namespace) -> int:
    """Put a run into a group, or with `--leave` take it out; without a name, print the group and its runs."""
    if options.leave and options.name:
        raise ValueError(tr("give either a group's name or --leave"))
    name = "" if options.leave else options.name
    with Client(Home.locate(options.home)) as client:
        run: Run = client.request("label", Label(run=options.run, group=name))
        runs = client.request("runs", ListRuns()).runs if run.group else []
    members = [each.id for each in runs if each.group == run.group]
    if options.json:
        emit({"run": run.id, "group": run.group, "runs": members})
    elif run.group:
        print(
            tr(
                "{id} is in the group {group}, which has {runs}",
                id=run.id,
                group=run.group,
                runs=counted(len(members), "run"),
            )
        )
    else:
        print(tr("{id} is in no group", id=run.id))
    return 0


def _label(options: argparse.Namespace, message: Label) -> int:
    with Client(Home.locate(options.home)) as client:
        run: Run = client.request("label", message)
    if options.json:
        emit({"run": run.id, "tags": run.tags, "note": run.note, "pinned": run.pinned})
    else:
        print(describe(run))
    return 0


def describe(run: Run) -> str:
    """`RUN is pinned, tagged a b; note: …`"""
    parts = [
        *([tr("is pinned")] if run.pinned else []),
        tr("is tagged {tags}", tags=" ".join(run.tags)) if run.tags else tr("has no tags"),
    ]
    return f"{run.id} {', '.join(parts)}" + (f"\n{run.note}" if run.note else "")
