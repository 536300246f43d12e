"""`cockpit` without a verb: open the app."""

from __future__ import annotations

import argparse
import sys

from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError


def is_interactive() -> bool:
    """Whether stdin and stdout are a terminal, which a full-screen app needs."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def open_app(options: argparse.Namespace) -> int:
    if not is_interactive():
        raise ProblemError(
            Problem(
                code="app.needs_terminal",
                title="The app needs a terminal",
                cause="stdin or stdout is a pipe or a file",
                hint="use a verb instead: cockpit --help",
            )
        )
    from cockpit.app import run

    return run(Home.locate(options.home), readonly=options.readonly)
