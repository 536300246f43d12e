"""The far end of a link: `cockpit engine connect`, which another host's cockpit starts through ssh.

It reads one request a line, answers each with one line, and ends with its standard input. So it ends with the link,
whatever became of the other side.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

from cockpit.connection.submission import resume_environment
from engine.protocol.client import start_engine
from engine.protocol.home import Home
from engine.protocol.messages import PROTOCOL, Problem, ProblemError
from engine.protocol.reach import check_process, locate_engine
from engine.protocol.terminal import escape_json
from engine.protocol.wire import Connection


class Inquiry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request to the agent. The reply has the same id."""

    id: int
    start: bool = False
    """Whether an engine is started if none runs."""
    resume: str = ""
    """The directory of a run whose environment is asked for, see `resume_environment`."""


class Found(msgspec.Struct, kw_only=True):
    """A reply: the engine, and the cockpit that found it."""

    id: int
    protocol: int
    """The version of the protocol that the cockpit there speaks."""
    version: str
    home: str
    directory: str
    """The working directory there."""
    environment: dict[str, str] = {}
    connection: Connection | None = None
    """Where the engine listens; null while none runs."""
    problem: Problem | None = None
    """Why there is no engine, or what the user should know about one that was started just now."""


def serve(home: Home) -> None:
    """Answer requests from stdin until it ends."""
    for line in sys.stdin:
        inquiry = msgspec.json.decode(line, type=Inquiry)
        sys.stdout.write(escape_json(msgspec.json.encode(answer(home, inquiry)).decode()) + "\n")
        sys.stdout.flush()


def answer(home: Home, inquiry: Inquiry) -> Found:
    """The engine as it is now, after starting one if that was asked for."""
    found = Found(
        id=inquiry.id,
        protocol=PROTOCOL,
        version=version("cockpit"),
        home=str(home.root),
        directory=str(Path.cwd()),
        environment=resume_environment(inquiry.resume) if inquiry.resume else _read_environment(),
    )
    try:
        if inquiry.start:
            found.problem = start_engine(home)
        connection = locate_engine(home)  # the socket is checked here, where its owner can be seen
        check_process(connection)  # and whether it is stopped
        found.connection = connection
    except ProblemError as error:
        found.problem = error.problem
    return found


def _read_environment() -> dict[str, str]:
    """The variables of this process, but those that are no text."""
    return {name: value for name, value in os.environ.items() if _is_text(name + value)}


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
