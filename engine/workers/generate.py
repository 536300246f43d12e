"""The generation service: it answers a file of prompts. Request: `generate {target, directory, input, output, …}`, see
`engine.inference.bulk.job`. Meanwhile it sends events `progress {stage, done, total}`. What is done when it is
cancelled or killed is kept, and the same request goes on from there. With `--share` the module is one of several
processes, one per device, that the service starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from engine.protocol.home import Home
from engine.protocol.worker_link import Link
from engine.workers.service_loop import Cancelled, ErrorTexts, build_parser, serve_requests

_EVERY = 0.2
"""Seconds between two progress events of one stage."""


class Generate:
    """`cancelled` holds the ids of cancelled requests."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled

    def generate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """See `job.generate`. Raises ProblemError, ValueError, OSError and Cancelled."""
        from engine.inference.bulk import job

        request, stage, sent = arguments["request"], "", 0.0
        self.link.send_status("busy", target=arguments["target"], detail="generating")

        def progress(name: str, done: int, total: int) -> None:
            nonlocal stage, sent
            now = time.monotonic()
            if name != stage or done == total or now - sent >= _EVERY:
                stage, sent = name, now
                self.link.send_event(request, "progress", stage=name, done=done, total=total)

        found = job.generate(arguments, self.home, progress, lambda: request in self.cancelled)
        if found["rows"] < found["total"]:
            raise Cancelled(f"{found['rows']} of {found['total']} replies are kept in {found['output']}.partial")
        return found


def main() -> None:
    if "--share" in sys.argv:
        generate_share()
        return
    arguments = build_parser().parse_args()
    cancelled: set[str] = set()
    home = Home.locate(arguments.home)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home, on_cancel=cancelled.add)
    service = Generate(link, home, cancelled)
    serve_requests(
        link,
        cancelled,
        {"generate": service.generate},
        ErrorTexts(
            "This cannot be generated",
            "Generation failed",
            (
                "replies so far are kept: run the same command again to continue, "
                "with a smaller --batch-size if memory ran out"
            ),
        ),
    )


def generate_share() -> None:
    """Generate one device's share of a request."""
    from engine.inference.bulk import decode

    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True)
    parser.add_argument("--device", default="")
    parser.add_argument("--share", type=json.loads)
    arguments = parser.parse_args()
    decode.run_process(Home.locate(arguments.home), arguments.share, arguments.device)


if __name__ == "__main__":
    main()
