"""What an evaluation is asked for, and whom it asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from pydantic import ValidationError

from engine.models.targets import Target
from engine.options import thresholds
from engine.options.evaluation import JudgeOptions
from engine.tasks import TASKS

if TYPE_CHECKING:
    from engine.evaluation.reward_scoring import PairScorer
    from engine.inference.loaded_model import Loaded

NEW_TOKENS = 256
"""Longest reply where nobody says."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be measured. None leaves it to the run that the target is of, or to the defaults."""

    data: str | None = None
    """A source; None: the rows that the run held out."""
    format: str = "auto"
    task: str | None = None
    rows: int | None = None
    """At most so many rows are taken."""
    samples: int | None = None
    """Replies are generated for so many of them; None: for as many as the run's profile says, or for all."""
    max_new_tokens: int | None = None
    constrained: bool = False
    """Let replies hold to the task's schema."""
    thresholds: list[str] | None = None
    judge: dict[str, Any] | None = None
    """Settings of a judge over those of the run's profile; None: no judge."""
    out: str | None = None
    again: bool = False
    dtype: str | None = None
    quantization: str | None = None


class Models(Protocol):
    """Keeps what it has loaded, so that the next target of the same base is quickly there."""

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> Loaded: ...

    def reward_model(self, target: Target) -> PairScorer: ...


class Watch(Protocol):
    """Hears how far it is. Both raise when the work is given up."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def given_up(self) -> bool:
        """Without raising."""
        ...


def check(wanted: Wanted) -> None:
    """Raises ValueError for what cannot be, before anything is loaded."""
    if wanted.task is not None and wanted.task not in TASKS:
        raise ValueError(f"there is no task {wanted.task!r}: choose one of {', '.join(TASKS)}")
    if wanted.constrained and wanted.task is None:
        raise ValueError("a reply can be held to a task's schema alone: name the task")
    for text in wanted.thresholds or ():
        thresholds.parse_threshold(text)
    if wanted.judge is not None:
        judging(wanted.judge)


def judging(settings: Mapping[str, Any]) -> JudgeOptions:
    """Raises ValueError, naming the setting."""
    try:
        return JudgeOptions.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"judge.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
