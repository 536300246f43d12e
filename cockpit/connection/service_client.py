"""A worker that a screen asks: opened on the first question, and again after it has ended."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from cockpit.connection.engine_app import EngineApp
from cockpit.connection.submission import environment
from engine.protocol.messages import Ask, Cancel, OpenService, Problem, ProblemError, Service, ServiceRef

PATIENCE = 3600.0
"""Seconds that a question may take: a large model on a slow disk, a long reply on a CPU."""


class Worker:
    """One service of `kind` for one screen. `id` is empty while none is open."""

    def __init__(self, app: EngineApp, kind: str) -> None:
        self.app, self.kind, self.id = app, kind, ""
        self._further: dict[str, str] = {}
        self._opening = asyncio.Lock()

    @property
    def service(self) -> Service | None:
        """What the engine last told of it."""
        return self.app.state.services.get(self.id)

    async def ask(self, question: str, arguments: dict[str, Any], request: str = "") -> Any:
        """The answer's result. What is said meanwhile comes as `ServiceEvent` with this `request`. Raises ProblemError."""
        await self._open()
        ask = Ask(service=self.id, request=request or uuid.uuid4().hex, question=question, arguments=arguments)
        try:
            return (await self._request("service_ask", ask, PATIENCE)).result
        except ProblemError:
            if self.service is None or self.service.state == "ended":
                self.id = ""
            raise

    async def cancel(self, request: str) -> None:
        """Ask it to give up that question; harmless when it is answered already."""
        if self.id:
            await self.app.ask("service_cancel", Cancel(service=self.id, request=request))

    async def need(self, further: dict[str, str]) -> None:
        """Variables that it gets beside the usual ones: one that was opened without them is ended, and the next question opens another."""
        if further != self._further:
            await self.close()
            self._further = further

    async def close(self) -> None:
        """End it, and let its memory go with it."""
        if self.id and self.app.client is not None:
            service, self.id = self.id, ""
            try:
                await self.app.client.request("service_close", ServiceRef(service=service), 2.0)
            except ProblemError:
                pass  # it is gone, or the engine is: either way there is nothing left to close

    async def _open(self) -> None:
        async with self._opening:
            if self.service is not None and self.service.state == "ended":
                self.id = ""
            if not self.id:
                message = OpenService(kind=self.kind, environment=environment() | self._further)
                self.id = (await self._request("service_open", message, 30.0)).id

    async def _request(self, operation: str, message: Any, seconds: float) -> Any:
        if self.app.client is None:
            raise ProblemError(Problem(title="Not attached to the engine yet", hint="wait a moment and try again"))
        return await self.app.client.request(operation, message, seconds)
