"""A file of prompts answered, in a worker of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cockpit.verbs.output import console, duration, emit, say
from cockpit.verbs.sampling_options import sampling_settings
from cockpit.verbs.service_call import asked
from engine.protocol.home import Home
from engine.protocol.messages import ServiceEvent

_TOLD = ("rows", "seconds", "tokens", "failed")


def generate(options: argparse.Namespace) -> int:
    names = ("target", "input", "output", "batch_size", "again", "dtype", "quantization", "system")
    arguments: dict[str, Any] = {name: getattr(options, name) for name in names}
    arguments |= sampling_settings(options) | {
        "directory": str(Path.cwd()),
        "devices": options.devices.split(",") if options.devices else None,
    }
    try:
        done = _followed(Home.locate(options.home), arguments)
    except KeyboardInterrupt:
        say(f"\nStopped; what is done is kept beside {options.output}, and the same command goes on.")
        raise
    if not done["template"]:
        say("This model has no chat template: it continued your texts.", "yellow")
    if done["note"]:
        say(done["note"], "dim")
    if options.json:
        emit({name: done[name] for name in _TOLD})
        return 0
    failed = f", {done['failed']} of them failed" if done["failed"] else ""
    kept = f" ({done['kept']} were there from before)" if done["kept"] else ""
    rate = f", {done['tokens'] / done['seconds']:.0f} tok/s" if not done["kept"] else ""
    print(f"{done['rows']} replies{kept}{failed} in {duration(done['seconds'])}{rate}: {done['output']}")
    return 0


def _followed(home: Home, arguments: dict[str, Any]) -> Any:
    """The answer, with a bar on the way."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=None)

        def said(event: ServiceEvent) -> None:
            if event.kind == "progress":
                total = event.data["total"] or None
                bar.update(task, description=str(event.data["stage"]), completed=event.data["done"], total=total)

        return asked(home, "generate", "generate", arguments, said)
