"""`cockpit generate`: reply to a file of prompts, in a worker of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from cockpit.language.translate import tr
from cockpit.state.formatting import format_duration
from cockpit.verbs.output import console, emit, say
from cockpit.verbs.sampling_options import sampling_settings
from cockpit.verbs.service_call import call_service
from engine.protocol.console import text_column
from engine.protocol.home import Home
from engine.protocol.messages import ServiceEvent

_REPORTED = ("rows", "seconds", "tokens", "failed")


def generate(options: argparse.Namespace) -> int:
    names = ("target", "input", "output", "batch_size", "again", "dtype", "quantization", "system")
    arguments: dict[str, Any] = {name: getattr(options, name) for name in names}
    arguments |= sampling_settings(options) | {
        "directory": str(Path.cwd()),
        "devices": options.devices.split(",") if options.devices else None,
    }
    try:
        done = _generate(Home.locate(options.home), arguments)
    except KeyboardInterrupt:
        say(
            tr(
                "\nStopped. The replies so far are kept beside {output}; the same command continues.",
                output=options.output,
            )
        )
        raise
    if not done["template"]:
        say(tr("This model has no chat template: it continued your texts."), "yellow")
    if done["note"]:
        say(done["note"], "dim")
    if options.json:
        emit({name: done[name] for name in _REPORTED})
        return 0
    failed = tr(", {failed} of them failed", failed=done["failed"]) if done["failed"] else ""
    kept = tr(" ({kept} from an earlier call)", kept=done["kept"]) if done["kept"] else ""
    rate = tr(", {tokens:.0f} tok/s", tokens=done["tokens"] / done["seconds"]) if not done["kept"] else ""
    print(
        tr(
            "{rows} replies{kept}{failed} in {seconds}{rate}: {output}",
            rows=done["rows"],
            kept=kept,
            failed=failed,
            seconds=format_duration(done["seconds"]),
            rate=rate,
            output=done["output"],
        )
    )
    return 0


def _generate(home: Home, arguments: dict[str, Any]) -> Any:
    """The answer, with a progress bar until it is there."""
    columns = (text_column("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=None)

        def on_event(event: ServiceEvent) -> None:
            if event.kind == "progress":
                total = event.data["total"] or None
                bar.update(task, description=str(event.data["stage"]), completed=event.data["done"], total=total)

        return call_service(home, "generate", "generate", arguments, on_event)
