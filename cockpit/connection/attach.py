"""The app's engines, made from what `--on` names, and the first connection to each, while ssh may still ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cockpit.connection.attachment import Attachment
from cockpit.connection.engine_app import connect
from cockpit.connection.link import Link
from cockpit.connection.ssh import RemoteHost, can_answer
from cockpit.language.translate import tr
from cockpit.remote_names import HERE
from engine.protocol.home import Home, host_name
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from engine.protocol.async_client import AsyncClient

PATIENCE = 8.0
"""Seconds that the app waits for hosts before it opens; then it goes on connecting behind its screens."""


async def _connect_link(link: Link) -> AsyncClient:
    from engine.protocol.async_client import AsyncClient

    return await AsyncClient.connect(link)


def make_engines(names: Sequence[str], home: Home, far_home: str = "") -> list[Attachment]:
    """An attachment for each host; `HERE` is this one. Raises ProblemError for what is no host."""
    engines = []
    for name in dict.fromkeys(names):
        if name == HERE:
            engines.append(Attachment(partial(connect, home), tr("{host_name} (here)", host_name=host_name())))
        else:
            link = Link(RemoteHost.parse(name), far_home)
            engines.append(Attachment(partial(_connect_link, link), str(link.host), link))
    return engines


def log_in(engines: Sequence[Attachment]) -> dict[Attachment, Problem]:
    """Connect to all hosts at once, without a question; then to those that refused, one after the other, with ssh's
    questions on the terminal. Returns the problem of each host that cannot be reached."""
    problems: dict[Attachment, Problem] = {}
    links = {engine: engine.link for engine in engines if engine.link is not None}

    def try_quietly(engine: Attachment, link: Link) -> None:
        try:
            link.connect(ask=False)
        except ProblemError as error:
            problems[engine] = error.problem

    threads = [threading.Thread(target=try_quietly, args=each, daemon=True) for each in links.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for engine, problem in list(problems.items()):
        if problem.code == "remote.ssh_failed" and can_answer():
            try:
                links[engine].connect(ask=True)
                del problems[engine]
            except ProblemError as error:
                problems[engine] = error.problem
    return problems
