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

from engine.config.memory_savings import list_memory_savings
from engine.config.profile import Profile, parse
from engine.models import accelerator, libraries
from engine.models.memory import is_out_of_memory
from engine.protocol import attempt_fence
from engine.protocol.file_channel import SCHEME
from engine.protocol.home import Home
from engine.protocol.journal import End
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line
from engine.protocol.worker_link import Link
from engine.training import ranks
from engine.training.inbox import Inbox, Terminated
from engine.training.reporter import Reporter
from engine.workers import host_samples

_SAVED = "`cockpit resume` continues from the last checkpoint"
_UNSAVED = "there is no checkpoint yet, so `cockpit resume` begins again at the first step"
RETRY = 2.0
"""Seconds between attempts to write the last entry to a full disk."""


def main() -> int:
    """Returns the exit status: 0 after End completed or stopped, 1 after End failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--from-step", type=int)
    arguments = parser.parse_args()
    # Libraries warn of coming changes in each other, about which the user can do nothing.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\b")
    home = Home(arguments.home)
    run = home.run(arguments.job)
    attempt_fence.hold(run.path, arguments.attempt)
    rank, local, world = ranks.read_place()
    inbox = Inbox()
    link = Link(
        arguments.address,
        arguments.job,
        arguments.attempt,
        rank,
        home=home,
        memory=accelerator.measure_memory,
        on_cancel=inbox.cancelled.add,
        on_instruction=inbox.receive,
        die_with_parent=world > 1 or arguments.address.startswith(SCHEME),
    )
    inbox.connect(link)
    inbox.end_on_sigterm()
    if link.by_files and local == 0:
        host_samples.keep(run)
    reporter = Reporter(run, arguments.attempt, link, rank)
    reporter.set_phase("loading", "libraries")
    profile = None
    try:
        directory = Path(json.loads((run.path / "job.json").read_text())["directory"])
        profile = parse(run.profile.read_text(), str(run.profile), directory, home=home, prepared=True)
        libraries.import_all()
        from engine.training.session import train

        outcome, step = train(run, arguments.attempt, profile, directory, arguments.from_step, reporter, inbox)
        end = End(attempt=arguments.attempt, step=step, status=outcome)
    except Terminated:
        print(f"SIGTERM, before the first step of this attempt or repeated: ended at step {inbox.step}", flush=True)
        end = End(attempt=arguments.attempt, step=inbox.step, status="stopped")
    except Exception as error:  # noqa: BLE001 - any failure ends the run, and must be in its journal
        traceback.print_exc()
        problem = describe_failure(error, profile, bool(run.checkpoint_steps()))
        end = End(attempt=arguments.attempt, step=inbox.step, status="failed", problem=problem)
    reporter.write(end)
    while not reporter.flush() and not (inbox.terminated and end.status == "stopped"):
        link.report_progress(phase=reporter.blocked.reason if reporter.blocked else "")
        time.sleep(RETRY)
    reporter.close()
    link.close()
    return 0 if end.status != "failed" else 1


def describe_failure(error: Exception, profile: Profile | None, saved: bool) -> Problem:
    """The problem for an exception: what happened, and what to do. `saved`: whether there is a checkpoint."""
    if isinstance(error, ProblemError):
        return error.problem
    text = "".join(traceback.format_exception(error))[-8000:]
    if is_out_of_memory(error):
        return Problem(
            code="memory.exhausted",
            title="Out of memory",
            cause=first_line(error),
            hint=_suggest_less_memory(profile),
            traceback=text,
        )
    return Problem(
        code="training.failed",
        title=f"Training failed: {type(error).__name__}",
        cause=first_line(error) if str(error).strip() else "",
        hint=f"read the log; {_SAVED if saved else _UNSAVED}",
        traceback=text,
    )


def _suggest_less_memory(profile: Profile | None) -> str:
    if profile is None:
        return "use a smaller model or a quantised base"
    return "set " + ", or ".join(list_memory_savings(profile))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without waiting for the libraries' threads, which can delay an ordinary exit: everything is on disk.
    os._exit(status)
