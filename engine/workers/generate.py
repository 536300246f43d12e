"""The generation service: a file of prompts answered. Questions: `generate {target, directory, input, output, …}`, see
`engine.inference.bulk.job`. It says `progress {stage, done, total}` on the way; what is done when it is cancelled or killed is kept, and the
same question goes on from there. With `--share` it is one of several processes, a device each, that such a service starts.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from typing import Any

from engine.protocol.home import Home
from engine.protocol.messages import Instruction, Problem, ProblemError
from engine.workers.link import Link

_EVERY = 0.2
"""Seconds between two words on one stage."""


class Cancelled(Exception):
    """The question is given up; what is done is kept."""


class Generate:
    """`cancelled` holds the names of requests that were given up."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        """See `job.generate`. Raises ProblemError, ValueError, OSError and Cancelled."""
        from engine.inference.bulk import job

        request, stage, told = asked["request"], "", 0.0
        self.link.status("busy", target=asked["target"], detail="generating")

        def progress(name: str, done: int, total: int) -> None:
            nonlocal stage, told
            now = time.monotonic()
            if name != stage or done == total or now - told >= _EVERY:
                stage, told = name, now
                self.link.say(request, "progress", stage=name, done=done, total=total)

        found = job.generate(asked, self.home, progress, lambda: request in self.cancelled)
        if found["rows"] < found["total"]:
            raise Cancelled(f"{found['rows']} of {found['total']} replies are kept in {found['output']}.partial")
        return found


def answer(service: Generate, instruction: Instruction) -> None:
    """Do what is asked and answer it, whatever happens."""
    result, problem = None, None
    try:
        if instruction.name != "generate":
            raise ValueError(f"generate does not know {instruction.name!r}, only generate")
        result = service.generate(instruction.arguments)
    except Cancelled as told:
        problem = Problem(title="Cancelled", cause=str(told), hint="the same command goes on from there")
    except ProblemError as error:
        problem = error.problem
    except (ValueError, KeyError, TypeError) as error:
        problem = Problem(title="This cannot be generated", cause=str(error))
    except (OSError, RuntimeError, MemoryError) as error:
        print(traceback.format_exc(), flush=True)
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        problem = Problem(
            title="Generation failed",
            cause=cause,
            hint="what is done is kept: the same command goes on, with a smaller --batch-size when memory was short",
            traceback=traceback.format_exc(),
        )
    service.cancelled.discard(instruction.arguments.get("request", ""))
    service.link.status("ready")
    service.link.answer(instruction, result=result, problem=problem)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True)
    for name in ("--job", "--address", "--device"):
        parser.add_argument(name, default="")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--share", type=json.loads)
    arguments = parser.parse_args()
    home = Home.locate(arguments.home)
    if arguments.share:
        from engine.inference.bulk import devices

        devices.share(home, arguments.share, arguments.device)
        return
    cancelled: set[str] = set()
    link = Link(arguments.address, arguments.job, arguments.attempt, on_cancel=cancelled.add)
    service = Generate(link, home, cancelled)
    link.status("ready")
    while True:
        link.arrived.wait()
        for instruction in link.instructions():
            answer(service, instruction)


if __name__ == "__main__":
    main()
