"""The serve service: a model behind an OpenAI-compatible address, until it is stopped.

Requests: `start {…Settings}` returns the address; `follow {}` sends events `requests {requests, left_out}` and `figures
{…}` until it is cancelled; `stop {seconds}` gives the replies in progress that long to finish, cancels the rest,
answers and ends the process. The service goes on when the client that started it leaves.
"""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import Instruction, Problem, ProblemError
from engine.protocol.worker_link import Link
from engine.serving.settings import BACKENDS, Settings
from engine.workers.service_loop import build_parser

if TYPE_CHECKING:
    from engine.serving.server import TransformersServer

TICK = 0.5
"""Seconds between two events with figures."""
SHOWN_REQUESTS = 20
"""Requests in one event; further ones are only counted."""


class Serve:
    """One server, or none yet."""

    def __init__(self, link: Link, home: Home) -> None:
        self.link, self.home = link, home
        self.running: TransformersServer | None = None
        self.following: dict[str, Instruction] = {}
        """Request id -> the `follow` instruction, which is answered when it is cancelled."""
        self._sent = 0
        self._figures: dict[str, Any] = {}

    def start(self, instruction: Instruction) -> dict[str, Any]:
        """Load and listen. Raises ProblemError, ValueError."""
        if self.running is not None:
            raise ValueError(f"it already serves {self.running.label}")
        settings = msgspec.convert(
            {key: value for key, value in instruction.arguments.items() if key != "request"}, Settings
        )
        settings.check()
        settings.read_key()
        target = targets.resolve(settings.target, self.home, Path(settings.directory or self.home.root))
        self.link.send_status("busy", target=target.label, detail="loading")

        def progress(stage: str, done: int, total: int) -> None:
            self.link.send_event(instruction.arguments["request"], "progress", stage=stage, done=done, total=total)

        module, _, name = BACKENDS[settings.backend].partition(":")
        self.running = running = getattr(importlib.import_module(module), name)(target, settings, self.home, progress)
        self.report_status()
        return {
            "address": running.address,
            "target": settings.target,
            "label": running.label,
            "device": running.device,
            "template": running.template,
            "note": running.note,
        }

    def report_status(self) -> None:
        """Send the status when it has changed, and events to those that follow."""
        if self.running is None:
            self.link.send_status("ready", detail="nothing is served")
            return
        figures = self.running.figures()
        if figures != self._figures:
            self._figures = figures
            state = "busy" if figures["running"] else "ready"
            running = self.running
            self.link.send_status(
                state,
                target=running.label,
                device=running.device,
                detail=running.address,
                address=running.address,
                figures=figures,
            )
        new, self._sent = self.running.requests(self._sent)
        for request in self.following:
            self.link.send_event(request, "figures", **figures)
            if new:
                self.link.send_event(
                    request,
                    "requests",
                    requests=[msgspec.to_builtins(each) for each in new[-SHOWN_REQUESTS:]],
                    left_out=len(new[:-SHOWN_REQUESTS]),
                )

    def stop(self, seconds: float) -> None:
        if self.running is not None:
            self.link.send_status("busy", target=self.running.label, device=self.running.device, detail="stopping")
            self.running.close(seconds)
            self.running = None


def serve(server: Serve, cancelled: set[str]) -> None:
    """Answer requests until `stop`."""
    link = server.link
    while True:
        link.instructions_arrived.wait(TICK if server.running else None)
        for instruction in link.take_instructions():
            result, problem = None, None
            try:
                match instruction.name:
                    case "start":
                        result = server.start(instruction)
                    case "follow":
                        server.following[instruction.arguments["request"]] = instruction
                        continue
                    case "stop":
                        server.stop(float(instruction.arguments.get("seconds", 5)))
                        link.answer(instruction, result={})
                        return
                    case other:
                        raise ValueError(f"serve cannot answer {other!r}, only start, follow, stop")
            except ProblemError as error:
                problem = error.problem
            except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
                problem = Problem(code="request.invalid", title="This cannot be served", cause=str(error))
            link.answer(instruction, result=result, problem=problem)
        for request in cancelled & server.following.keys():
            cancelled.discard(request)
            link.answer(server.following.pop(request), result={})
        if server.running and not server.running.alive:
            raise SystemExit("a thread of the server has ended; its traceback is above")
        server.report_status()


def main() -> None:
    arguments = build_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cancelled: set[str] = set()
    home = Home.locate(arguments.home)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home, on_cancel=cancelled.add)
    server = Serve(link, home)
    server.report_status()
    try:
        serve(server, cancelled)
    finally:
        server.stop(0)
        link.close()


if __name__ == "__main__":
    main()
