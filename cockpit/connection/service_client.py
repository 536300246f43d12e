"""A service that a screen asks: opened on the first question, and again after it has ended."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from cockpit.connection.engine_app import EngineApp
from cockpit.connection.submission import shell_environment
from cockpit.language.translate import tr
from engine.protocol.messages import Ask, Cancel, OpenService, Problem, ProblemError, Service, ServiceRef

ANSWER_TIMEOUT = 3600.0
"""Seconds that a question may take: a large model on a slow disk, a long reply on a CPU."""


class ServiceClient:
    """One service of `kind` for one screen. `id` is empty while none is open."""

    def __init__(self, app: EngineApp, kind: str) -> None:
        self.app, self.kind, self.id = app, kind, ""
        self._extra_environment: dict[str, str] = {}
        self._opening = asyncio.Lock()
        self._unwanted = False
        """Whether it was closed while it was being opened."""

    @property
    def service(self) -> Service | None:
        """The service as the engine last reported it."""
        return self.app.state.services.get(self.id)

    async def ask(self, question: str, arguments: dict[str, Any], request: str = "") -> Any:
        """The result of a question. Its progress is published as `ServiceEvent` with this `request`. Raises
        ProblemError."""
        await asyncio.shield(self._open())  # a question that is given up must not leave a service that nobody closes
        ask = Ask(service=self.id, request=request or uuid.uuid4().hex, question=question, arguments=arguments)
        try:
            return (await self._request("service_ask", ask, ANSWER_TIMEOUT)).result
        except ProblemError:
            if self.service is None or self.service.state == "ended":
                self.id = ""
            raise

    async def cancel(self, request: str) -> None:
        """Cancel that question. Has no effect on a question that is answered already."""
        if self.id:
            await self.app.ask("service_cancel", Cancel(service=self.id, request=request))

    async def set_environment(self, extra: dict[str, str]) -> None:
        """Give the service these variables besides the usual ones. A service that was opened with others is closed
        first."""
        if extra != self._extra_environment:
            await self.close()
            self._extra_environment = extra

    async def close(self) -> None:
        """End the service, which frees its memory."""
        self._unwanted = True
        await self._end()

    async def _end(self) -> None:
        if self.id and self.app.client is not None:
            service, self.id = self.id, ""
            try:
                await self.app.client.request("service_close", ServiceRef(service=service), 2.0)
            except ProblemError:
                pass  # the service or the engine is gone: there is nothing left to close

    async def _open(self) -> None:
        async with self._opening:
            if self.service is not None and self.service.state == "ended":
                self.id = ""
            if not self.id:
                self._unwanted = False
                environment = shell_environment(self.app.engine.shell) | self._extra_environment
                message = OpenService(kind=self.kind, environment=environment)
                self.id = (await self._request("service_open", message, 30.0)).id
                if self._unwanted:
                    await self._end()

    async def _request(self, operation: str, message: Any, seconds: float) -> Any:
        if self.app.client is None:
            raise ProblemError(
                Problem(
                    code="engine.not_attached",
                    title=tr("Not attached to the engine yet"),
                    hint=tr("wait a moment and try again"),
                )
            )
        return await self.app.client.request(operation, message, seconds)
