"""`cockpit profile-step`: a trace of some steps of a live run, and the operations that took most of them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import msgspec

from cockpit.language.translate import tr
from cockpit.state.formatting import counted
from cockpit.verbs import run_files
from cockpit.verbs.output import emit, say, table
from engine.protocol import states
from engine.protocol.client import Client
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Problem, ProblemError, Taken, Trace

BOUNDARY = 600.0
"""Seconds until the step that is being computed has ended."""
POLL = 0.2
SHOWN = 15


def profile_step(options: argparse.Namespace) -> int:
    home = Home.locate(options.home)
    with Client(home) as client:
        taken: Taken = client.request("trace", Trace(run=options.run, steps=options.steps), BOUNDARY)
    run = home.run(taken.run)
    steps = counted(options.steps, "step")
    say(tr("recording {steps} of {id} from step {step}", steps=steps, id=run.id, step=taken.step), "dim")
    found = _wait(run, run.traces / f"step-{taken.step:08d}.json")
    trace = run.traces / f"step-{taken.step:08d}.trace.json"
    if failed := found.get("failed"):
        raise ProblemError(
            Problem(code="file.unwritable", title=tr("{trace} cannot be written", trace=trace), cause=str(failed))
        )
    if options.json:
        emit(found | {"run": run.id, "path": str(trace)})
        return 0
    rows = [
        (each["name"][:60], f"{100 * each['share']:.1f} %", str(each["calls"]),
         f"{1e3 * each['device_seconds']:.1f}", f"{1e3 * each['cpu_seconds']:.1f}")
        for each in found["operations"][:SHOWN]
    ]  # fmt: skip
    if found["steps"] < options.steps:
        say(
            tr(
                "only {recorded} of {wanted} steps: then the training ended, or began again",
                recorded=found["steps"],
                wanted=options.steps,
            ),
            "yellow",
        )
    table(("OPERATION", "SHARE", "CALLS", tr("DEVICE ms"), tr("CPU ms")), rows)
    say(tr("{trace} opens in Perfetto (ui.perfetto.dev) and chrome://tracing", trace=trace))
    return 0


def _wait(run: RunDirectory, path: Path) -> dict[str, Any]:
    """The table of the trace, as soon as it is written. Raises ProblemError if the run ends before."""
    ended = False
    while True:
        if path.exists():
            found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
            return found
        if ended:
            raise ProblemError(
                Problem(
                    code="run.ended",
                    title=tr("{id} ended before the trace was written", id=run.id),
                    cause=tr("a trace needs some steps that are still to come"),
                    hint=tr("`cockpit logs {id}` says more", id=run.id),
                )
            )
        ended = run_files.read_state(run) not in states.LIVE  # one more look after that
        if not ended:
            time.sleep(POLL)
