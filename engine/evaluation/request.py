"""The request of an evaluation, and the interfaces of the models and the progress that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from pydantic import ValidationError

from engine.models.targets import Target
from engine.options import thresholds
from engine.options.evaluation import JudgeOptions
from engine.tasks.task import load_task

if TYPE_CHECKING:
    from engine.evaluation.reward_scoring import PairScorer
    from engine.inference.loaded_model import LoadedModel

NEW_TOKENS = 256
"""Longest reply in tokens, where neither the request nor the run says."""


class EvaluationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to measure. None leaves a setting to the target's run, or to the defaults."""

    data: str | None = None
    """A source of rows; None: the rows that the run held out."""
    format: str = "auto"
    task: str | None = None
    rows: int | None = None
    """The greatest number of rows."""
    samples: int | None = None
    """The number of rows for which replies are generated; None: as in the run's profile, or all."""
    max_new_tokens: int | None = None
    constrained: bool = False
    """Keep replies to the task's schema."""
    thresholds: list[str] | None = None
    judge: dict[str, Any] | None = None
    """Settings of a judge, which override those of the run's profile; None: no judge."""
    out: str | None = None
    again: bool = False
    benchmarks: list[str] | None = None
    """Benchmarks of lm-evaluation-harness to measure on, instead of rows."""
    forgetting: bool = False
    """Ask the bundled questions, instead of rows."""
    benchmark_folder: str | None = None
    """A folder with files of further benchmarks."""
    few_shot: int | None = None
    """Examples before each question of a benchmark; None: as it says itself."""
    chat_template: bool = False
    """Put a benchmark's questions into the model's chat template."""
    dtype: str | None = None
    quantization: str | None = None


class Models(Protocol):
    """Loads models, and keeps the last one so that the next target of the same base is loaded faster."""

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> LoadedModel: ...

    def reward_model(self, target: Target) -> PairScorer: ...


class Watch(Protocol):
    """Receives progress. Calling it raises when the work is cancelled."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def is_cancelled(self) -> bool:
        """Whether the work is cancelled, without raising."""
        ...


def check_request(request: EvaluationRequest) -> None:
    """Raises ValueError for a request that cannot succeed, before anything is loaded."""
    if request.task is not None:
        load_task(request.task)
    if request.constrained and request.task is None:
        raise ValueError("a reply can be held to a task's schema alone: name the task")
    for text in request.thresholds or ():
        thresholds.parse_threshold(text)
    if request.judge is not None:
        read_judge_options(request.judge)


def read_judge_options(settings: Mapping[str, Any]) -> JudgeOptions:
    """The settings of a judge. Raises ValueError, naming the setting that is invalid."""
    try:
        return JudgeOptions.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"judge.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
