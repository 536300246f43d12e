"""Chat with a run while it trains: the run's own process answers, and reports how long that delayed the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cockpit.language.translate import tr
from cockpit.state.formatting import format_hot_cost
from cockpit.state.token_scores import ScoredText
from cockpit.verbs.chat_client import Chat, Message
from cockpit.verbs.output import say
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError, RunRef
from engine.protocol.states import PAUSED, RUNNING

COST = ("first_step", "last_step", "boundaries", "held_seconds", "step_seconds")
"""Keys of an answer in addition to a chat worker's."""


class HotChat(Chat):
    """A `Chat` with a run's newest weights. There is nothing to load."""

    def load(self, target: str, **options: str | None) -> dict[str, Any]:
        """Raises ValueError for a dtype or a quantization, because the weights are used as they are trained."""
        if any(options.values()):
            raise ValueError(tr("--hot uses the weights as they are trained: leave out --dtype and --quantization"))
        return {"label": tr("{target} (training)", target=target), "template": True}

    def score(self, arguments: dict[str, Any]) -> ScoredText:
        """Raises ValueError: the run's process answers questions alone."""
        raise ValueError(tr("a run that is training scores no text: leave out --hot to have a checkpoint do it"))

    def reply(self, messages: list[Message], write: Callable[[str, str], None] | None = None) -> dict[str, Any]:
        answer = super().reply(messages, write)
        say(f"\n{format_hot_cost(answer)}", "dim")
        return answer

    def _ask(self, *question: Any) -> Any:
        answer = super()._ask(*question)
        if answer is None:
            raise ProblemError(
                Problem(
                    code="run.ended",
                    title=tr("The run has ended"),
                    hint=tr("leave out --hot to ask its last checkpoint"),
                )
            )
        return answer


@contextmanager
def open_hot_chat(home: Home, target: str, settings: dict[str, Any]) -> Iterator[HotChat]:
    """A chat with a run that is training. Raises ProblemError for any other run."""
    with Client(home) as client:
        run = client.request("show", RunRef(run=target)).run
        if run.state not in (RUNNING, PAUSED):
            raise ProblemError(
                Problem(
                    code="run.not_training",
                    title=tr("{id} is {state}", id=run.id, state=run.state),
                    cause=tr("only a run that is training answers from its own process"),
                    hint=tr("cockpit chat {id} asks its best checkpoint", id=run.id),
                )
            )
        yield HotChat(client, run.id, settings)
