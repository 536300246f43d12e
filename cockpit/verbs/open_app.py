"""No verb: the app."""

from __future__ import annotations

import argparse
import sys

from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError


def on_terminal() -> bool:
    """Whether somebody can see and steer a full-screen app."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def open_app(options: argparse.Namespace) -> int:
    if not on_terminal():
        raise ProblemError(
            Problem(
                title="The app needs a terminal",
                cause="stdin or stdout is a pipe or a file",
                hint="every screen has a verb: cockpit --help",
            )
        )
    from cockpit.app import run

    run(Home.locate(options.home), readonly=options.readonly)
    return 0
