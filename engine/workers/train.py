"""The training worker: one rank of a run. Started by the supervisor, alone or under torchrun."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from engine.config.profile import Profile, parse
from engine.models import devices
from engine.protocol.home import Home
from engine.protocol.journal import End
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.worker_link import Link
from engine.training import ranks
from engine.training.inbox import Inbox
from engine.training.reporter import Reporter

RETRY = 2.0
"""Seconds between attempts to write the last words to a full disk."""


def main() -> int:
    """Returns the exit status: 0 after End completed or stopped, 1 after End failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--from-step", type=int)
    arguments = parser.parse_args()
    # The libraries warn themselves of changes to come in each other: nothing that who trains could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\b")
    home = Home(arguments.home)
    run = home.run(arguments.job)
    rank, _, world = ranks.place()
    inbox = Inbox()
    link = Link(
        arguments.address,
        arguments.job,
        arguments.attempt,
        rank,
        memory=devices.measure,
        on_cancel=inbox.cancelled.add,
        on_instruction=inbox.take_in,
        die_with_parent=world > 1,
    )
    inbox.connect(link)
    reporter = Reporter(run, arguments.attempt, link, rank)
    reporter.phase("loading", "libraries")
    profile = None
    try:
        directory = Path(json.loads((run.path / "job.json").read_text())["directory"])
        profile = parse(run.profile.read_text(), str(run.profile), directory, home=home)
        from engine.training.session import train

        outcome, step = train(run, arguments.attempt, profile, directory, arguments.from_step, reporter, inbox)
        end = End(attempt=arguments.attempt, step=step, status=outcome)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the run's end and crosses as data
        traceback.print_exc()
        problem = explain(error, profile)
        end = End(attempt=arguments.attempt, step=inbox.step, status="failed", problem=problem)
    reporter.write(end)
    while not reporter.flush():
        link.alive(phase=reporter.blocked)
        time.sleep(RETRY)
    link.close()
    return 0 if end.status != "failed" else 1


def explain(error: Exception, profile: Profile | None) -> Problem:
    """An exception as a problem: what happened, and what mends it."""
    if isinstance(error, ProblemError):
        return error.problem
    text = "".join(traceback.format_exception(error))[-8000:]
    if type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return Problem(
            title="Out of memory", cause=str(error).splitlines()[0], hint=_less_memory(profile), traceback=text
        )
    cause = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return Problem(
        title=f"Training failed: {type(error).__name__}",
        cause=cause,
        hint="read the log; `cockpit resume` goes on from the last checkpoint",
        traceback=text,
    )


def _less_memory(profile: Profile | None) -> str:
    """Settings that need less, with this run's own numbers."""
    if profile is None:
        return "use a smaller model or a quantised base"
    training = profile.training
    ways = []
    if training.micro_batch > 1:
        half = -(-training.micro_batch // 2)
        ways.append(
            f"training.micro_batch={half} with training.accumulation={training.accumulation * 2} (the same global batch)"
        )
    if not training.gradient_checkpointing:
        ways.append("training.gradient_checkpointing=true")
    if profile.model.quantization == "none" and profile.adapter.kind != "none":
        ways.append("model.quantization=nf4")
    return "set " + ", or ".join([*ways, f"a data.max_length below {profile.data.max_length}"])


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: threads of libraries may hold an ordinary exit up, and everything is on disk.
    os._exit(status)
