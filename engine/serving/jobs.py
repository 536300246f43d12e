"""What clients and the scheduler exchange: jobs in, events out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.inference.sampling import Sampling
from engine.inference.token_scores import ScoredToken


class Rejection(Exception):
    """Jobs were not accepted: the queue is `full`, or the server is shutting down."""

    def __init__(self, *, full: bool) -> None:
        super().__init__("the queue is full" if full else "the server is shutting down")
        self.full = full


@dataclass(eq=False)
class Job:
    """A reply to generate. The prompt is not empty and leaves room in the context."""

    prompt: list[int]
    sampling: Sampling
    deadline: float
    """On the monotonic clock."""
    grammar: Any = None
    """Keeps the reply to a schema."""
    alternatives: int | None = None
    """The number of likeliest tokens that are reported beside each token; None: no log-probabilities."""
    echo: str | None = None
    """The text of the prompt, when it begins the answer; with log-probabilities, the prompt's tokens have theirs."""
    continues: bool = False
    """Whether the reply goes on with the prompt's text, as a text completion does."""
    generates: bool = True
    """Whether a reply follows the prompt; else the prompt is only scored."""
    shown: tuple[str, ...] = ()
    """Special tokens that are text in the reply: the marks of tool calls."""
    adapter: str = ""
    """peft's name of the adapter to compute with, in a server of several."""
    cancelled: bool = False
    accepted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    """When the first token was generated."""
    tokens: int = 0


def choose_adapters(jobs: Iterable[Job]) -> dict[str, list[str]]:
    """The argument by which peft computes each row with its own adapter; none in a server of one model."""
    names = [job.adapter for job in jobs]
    return {"adapter_names": names} if any(names) else {}


@dataclass(frozen=True)
class JobText:
    """Text and thinking that a job's next token adds."""

    text: str
    thinking: str
    scored: tuple[ScoredToken, ...] = ()
    """The tokens themselves, where log-probabilities were asked for. The text of a token may come later than it."""


@dataclass(frozen=True)
class JobEnd:
    """A job has ended."""

    finish: str
    """`stop`, `length`, `cancelled`, `late` (at its deadline), `closing`, or `failed`."""
    cause: str = ""
    """Why it failed."""


JobEvent = tuple[Job, JobText | JobEnd]


@dataclass
class Figures:
    """Counts since the start; `running` and `waiting` are current numbers of jobs."""

    running: int = 0
    waiting: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    """Finish -> number of jobs."""
    prompt_tokens: int = 0
    tokens: int = 0
