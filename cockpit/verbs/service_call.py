"""One question to a service of its own, which is opened for it and closed after it. ctrl+c cancels the question."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from cockpit.connection.submission import shell_environment
from cockpit.verbs.output import console, format_progress
from engine.protocol.client import Client
from engine.protocol.console import text
from engine.protocol.home import Home
from engine.protocol.messages import Ask, Cancel, OpenService, ServiceEvent, ServiceRef


def call_service(
    home: Home,
    kind: str,
    question: str,
    arguments: dict[str, Any],
    on_event: Callable[[ServiceEvent], None],
    extra: dict[str, str] | None = None,
) -> Any:
    """The answer of a service of `kind`, which runs for this one question. `extra` are environment variables besides
    the usual ones.

    Raises ProblemError; and KeyboardInterrupt after cancelling the question, which leaves everything as it was before.
    """
    with Client(home) as client:
        opening = OpenService(kind=kind, environment=shell_environment() | (extra or {}))
        service = client.request("service_open", opening).id
        ask = Ask(service=service, request=uuid.uuid4().hex, question=question, arguments=arguments)
        try:
            return client.ask(ask, on_event)
        except KeyboardInterrupt:
            client.request("service_cancel", Cancel(service=service, request=ask.request))
            raise
        finally:
            client.request("service_close", ServiceRef(service=service))


def call_service_with_status(home: Home, kind: str, question: str, arguments: dict[str, Any], label: str) -> Any:
    """Like `call_service`, with a line in the terminal that shows the progress."""
    with console().status(text(label)) as status:

        def on_event(event: ServiceEvent) -> None:
            status.update(text(f"{label}: {format_progress(event)}"))

        return call_service(home, kind, question, arguments, on_event)
