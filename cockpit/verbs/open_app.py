"""`cockpit` without a verb: open the app."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import TYPE_CHECKING

from cockpit.language.translate import tr
from cockpit.remote_names import HERE
from cockpit.verbs.output import say
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from cockpit.connection.attachment import Attachment


def is_interactive() -> bool:
    """Whether stdin and stdout are a terminal, which a full-screen app needs."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def in_browser() -> bool:
    """Whether `cockpit web` has started this app, which then has pipes for a terminal."""
    return os.environ.get("TEXTUAL_DRIVER", "").endswith(":WebDriver")


def open_app(options: argparse.Namespace) -> int:
    if not is_interactive() and not in_browser():
        raise ProblemError(
            Problem(
                code="app.needs_terminal",
                title=tr("The app needs a terminal"),
                cause=tr("stdin or stdout is a pipe or a file"),
                hint=tr("use a verb instead: cockpit --help"),
            )
        )
    if os.environ.get("TERM", "") in ("dumb", "unknown"):
        raise ProblemError(
            Problem(
                code="app.needs_terminal",
                title=tr("This terminal cannot show the app"),
                cause=tr("TERM is {TERM}: it moves no cursor", TERM=os.environ["TERM"]),
                hint=tr("use a verb instead, such as `cockpit watch last`, or set TERM to what the terminal is"),
            )
        )
    gc.disable()  # until the first paint: modules that are being imported are no garbage
    from cockpit.session import run

    if not options.on:
        return run(Home.locate(options.home), readonly=options.readonly)
    home = Home.locate(options.home if HERE in options.on else None)
    engines = _attach(options, home)
    try:
        return run(home, readonly=options.readonly, engines=engines)
    finally:
        for engine in engines:
            if engine.link is not None:
                engine.link.close()


def _attach(options: argparse.Namespace, home: Home) -> list[Attachment]:
    """Connect to the hosts of `--on`. Raises ProblemError when none can be reached; one that can opens the app."""
    from cockpit.connection.attach import log_in, make_engines

    engines = make_engines(options.on, home, options.home or "")
    say(tr("connecting to {name} …", name=", ".join(engine.name for engine in engines)), "dim")
    try:
        problems = log_in(engines)
    except BaseException:
        for engine in engines:
            if engine.link is not None:
                engine.link.close()
        raise
    if len(problems) == len(engines):
        raise ProblemError(next(iter(problems.values())))
    return engines
