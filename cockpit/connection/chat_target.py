"""One target of a chat: a model in a chat worker of its own, or a run that is training and answers with its newest
weights."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from cockpit.connection.engine_app import EngineApp
from cockpit.connection.service_client import ANSWER_TIMEOUT, ServiceClient
from cockpit.language.translate import tr
from engine.protocol.messages import Ask, Cancel, Problem, ProblemError
from engine.protocol.states import PAUSED, RUNNING

NOW = "@now"
"""After a run's id: its newest weights, in the process that trains them."""


class ChatTarget:
    """Call `load`, then `ask`. Pieces of a reply are published as `ServiceEvent` with `request`, which is empty between
    questions."""

    def __init__(self, app: EngineApp, target: str) -> None:
        self.app, self.target = app, target
        self.loaded: dict[str, Any] | None = None
        """What the worker reported of the loaded target; None before."""
        self.request = ""
        self.worker = ServiceClient(app, "chat")

    @property
    def run(self) -> str:
        """The run that answers from its own process; empty for a model in a worker."""
        return self.target.removesuffix(NOW) if self.target.endswith(NOW) else ""

    @property
    def label(self) -> str:
        return str(self.loaded["label"]) if self.loaded else self.target

    async def change(self, target: str) -> None:
        """Switch to another target. The worker stays open: it may have the same base loaded."""
        self.target, self.loaded = target, None
        if self.run:
            await self.worker.close()

    async def load(self) -> None:
        """Load the target. Raises ProblemError."""
        self.loaded = None
        self.loaded = self._load_run() if self.run else await self._ask("load", self._load_arguments())

    async def ask(self, messages: list[dict[str, str]], settings: dict[str, Any]) -> dict[str, Any]:
        """The answer to `messages`, sampled with `settings`. Raises ProblemError."""
        answer: dict[str, Any] = await self._ask("generate", {"messages": messages} | settings)
        return answer

    async def score(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The probabilities of the tokens of a `text`, or of a `reply` to `messages`. Raises ProblemError."""
        if self.run:
            raise ProblemError(
                Problem(
                    code="request.invalid",
                    title=tr("A run that is training scores no text"),
                    cause=tr("its process answers questions alone"),
                    hint=tr("ctrl+t picks a checkpoint of {run}", run=self.run),
                )
            )
        answer: dict[str, Any] = await self._ask("score", arguments)
        return answer

    async def cancel(self) -> None:
        """Cancel the current question, if there is one."""
        if self.request and self.run:
            await self.app.ask("service_cancel", Cancel(service=self.run, request=self.request))
        elif self.request:
            await self.worker.cancel(self.request)

    async def close(self) -> None:
        """End the worker, or cancel the question to a run."""
        if self.run and self.request and self.app.client is not None:
            with contextlib.suppress(ProblemError):
                cancel = Cancel(service=self.run, request=self.request)
                await self.app.client.request("service_cancel", cancel, 2.0)
        await self.worker.close()

    def _load_arguments(self) -> dict[str, Any]:
        return {"target": self.target, "directory": self.app.engine.directory}

    def _load_run(self) -> dict[str, Any]:
        if self.app.readonly:
            raise ProblemError(
                Problem(
                    code="app.read_only",
                    title=tr("This cockpit is read-only"),
                    cause=tr("answering takes training time from a run"),
                )
            )
        run = self.app.state.runs.get(self.run)
        if run is None or run.state not in (RUNNING, PAUSED):
            state = run.state if run else tr("not there")
            raise ProblemError(
                Problem(
                    code="run.not_training",
                    title=tr("{run} is {state}", run=self.run, state=state),
                    cause=tr("only a run that is training answers from its own process"),
                    hint=tr("choose one of its checkpoints: {run}", run=self.run),
                )
            )
        return {"label": f"{self.run}{NOW}", "template": True, "seconds": 0.0}

    async def _ask(self, question: str, arguments: dict[str, Any]) -> Any:
        self.request = uuid.uuid4().hex
        try:
            if not self.run:
                return await self.worker.ask(question, arguments, self.request)
            if self.app.client is None:
                raise ProblemError(
                    Problem(
                        code="engine.not_attached",
                        title=tr("Not attached to the engine"),
                        hint=tr("wait a moment and try again"),
                    )
                )
            ask = Ask(service=self.run, request=self.request, question=question, arguments=arguments)
            result = (await self.app.client.request("service_ask", ask, ANSWER_TIMEOUT)).result
            if result is None:
                raise ProblemError(
                    Problem(
                        code="run.ended",
                        title=tr("{run} has ended", run=self.run),
                        hint=tr("ask its last checkpoint instead"),
                    )
                )
            return result
        finally:
            self.request = ""
