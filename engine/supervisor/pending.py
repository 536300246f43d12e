"""Requests that a worker has not answered yet. Each ends in one reply: the worker's answer, or a problem when the
worker has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.protocol import states
from engine.protocol.messages import Answered, Message, Problem, ProblemError, Run
from engine.supervisor.clients import Caller, Clients


@dataclass(frozen=True)
class Request:
    """`job` is the run or service that was asked; `finish` makes the reply from the worker's answer."""

    caller: Caller
    job: str
    finish: Callable[[Answered], Message]


class PendingRequests:
    """By the id of the instruction that went to the worker."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._requests: dict[str, Request] = {}

    def add(self, instruction: str, caller: Caller, job: str, finish: Callable[[Answered], Message]) -> None:
        self._requests[instruction] = Request(caller, job, finish)

    def pop(self, instruction: str) -> Request | None:
        return self._requests.pop(instruction, None)

    def answer(self, request: Request, answer: Answered) -> None:
        """Reply with the worker's answer, or with the problem that it reports."""
        if answer.problem is not None:
            self._clients.reply_with_error(request.caller, ProblemError(answer.problem))
        else:
            self._clients.reply(request.caller, request.finish(answer))

    def fail(self, job: str, problem: Problem) -> None:
        """The job's worker has ended: reply to everything it was asked with `problem`."""
        for instruction in self._of_job(job):
            self._clients.reply_with_error(self._requests.pop(instruction).caller, ProblemError(problem))

    def resolve_ended(self, run: Run) -> None:
        """The run has ended: a client that asked it to stop gets its reply, every other one a problem."""
        if run.state not in (states.STOPPED, states.COMPLETED):
            self.fail(run.id, Problem(code="run.not_live", title=f"{run.id} is {run.state}", cause=run.reason))
            return
        for instruction in self._of_job(run.id):
            request = self._requests.pop(instruction)
            self._clients.reply(request.caller, request.finish(Answered(id=instruction, step=run.step)))

    def _of_job(self, job: str) -> list[str]:
        return [instruction for instruction, request in self._requests.items() if request.job == job]
