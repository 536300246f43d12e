"""The generation service: a file of prompts answered. Questions: `generate {target, directory, input, output, …}`, see
`engine.inference.bulk.job`. It says `progress {stage, done, total}` on the way; what is done when it is cancelled or killed is kept, and the
same question goes on from there. With `--share` it is one of several processes, a device each, that such a service starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from engine.protocol.home import Home
from engine.protocol.worker_link import Link
from engine.workers.questions import Cancelled, Wording, attend, parser

_EVERY = 0.2
"""Seconds between two words on one stage."""


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


def main() -> None:
    if "--share" in sys.argv:
        share()
        return
    arguments = parser().parse_args()
    cancelled: set[str] = set()
    link = Link(arguments.address, arguments.job, arguments.attempt, on_cancel=cancelled.add)
    service = Generate(link, Home.locate(arguments.home), cancelled)
    attend(
        link,
        cancelled,
        {"generate": service.generate},
        Wording(
            "This cannot be generated",
            "Generation failed",
            "what is done is kept: the same command goes on, with a smaller --batch-size when memory was short",
        ),
    )


def share() -> None:
    """One device's part of a question."""
    from engine.inference.bulk import decode

    made = argparse.ArgumentParser()
    made.add_argument("--home", required=True)
    made.add_argument("--device", default="")
    made.add_argument("--share", type=json.loads)
    arguments = made.parse_args()
    decode.run_process(Home.locate(arguments.home), arguments.share, arguments.device)


if __name__ == "__main__":
    main()
