"""One question to a service of its own: opened, followed, closed on the way out. ctrl+c gives it up."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from rich.markup import escape

from cockpit.connection.submission import environment
from cockpit.verbs.output import console, format_progress
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Ask, Cancel, OpenService, ServiceEvent, ServiceRef


def asked(
    home: Home,
    kind: str,
    question: str,
    arguments: dict[str, Any],
    said: Callable[[ServiceEvent], None],
    further: dict[str, str] | None = None,
) -> Any:
    """The answer of a service of `kind`, which lives for this one question; `further` are variables that it gets beside the usual ones.

    Raises ProblemError, and KeyboardInterrupt after the worker was told to leave everything as it was before.
    """
    with Client(home) as client:
        opening = OpenService(kind=kind, environment=environment() | (further or {}))
        service = client.request("service_open", opening).id
        ask = Ask(service=service, request=uuid.uuid4().hex, question=question, arguments=arguments)
        try:
            return client.ask(ask, said)
        except KeyboardInterrupt:
            client.request("service_cancel", Cancel(service=service, request=ask.request))
            raise
        finally:
            client.request("service_close", ServiceRef(service=service))


def watched(home: Home, kind: str, question: str, arguments: dict[str, Any], label: str) -> Any:
    """As `asked`, with a line in the terminal that says what is done and how far it is."""
    with console().status(escape(label)) as status:

        def said(event: ServiceEvent) -> None:
            status.update(f"{escape(label)}: {escape(format_progress(event))}")

        return asked(home, kind, question, arguments, said)
