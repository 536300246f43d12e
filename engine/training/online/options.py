"""Options of online methods. Torch-free."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from engine.options.base import Options, Variant, option


class RewardOptions(Options):
    """The reward of a reply: the score of a reward model, or a task's metric against the row's own reply."""

    run: str | None = option(None, help="Reward model: a run of method.kind reward, or a folder that holds one.")
    task: str | None = option(None, help="Task whose metric is the reward, such as triples.")
    metric: str | None = option(None, help="The task's metric, such as triples_f1, of each reply by itself.")

    @model_validator(mode="after")
    def _one(self) -> RewardOptions:
        if (self.run is None) == (self.task is None):
            raise ValueError("set either run, for a reward model, or task and metric")
        if (self.task is None) != (self.metric is None):
            raise ValueError(
                "task needs the metric that is the reward" if self.task else "metric belongs to a task, not to a run"
            )
        return self


class OnlineOptions(Variant):
    """Options that the online methods share; the meaning of `beta` differs between them."""

    reward: RewardOptions = option(help="Who rewards the replies: {run: RUN}, or {task: triples, metric: triples_f1}.")
    generations: int = option(8, help="Replies to each prompt, which are compared with each other.", ge=2)
    max_new_tokens: int = option(256, help="Longest reply that is sampled for training.", unit="tokens", ge=1)
    temperature: float = option(
        1.0, help="Of sampling; the probabilities in the loss are at this temperature too.", gt=0
    )
    top_k: int | None = option(None, help="Sample among the k likeliest tokens.", ge=1)
    top_p: float | None = option(
        None, help="Sample among the likeliest tokens that together have this probability.", gt=0, le=1
    )
    iterations: int = option(
        1, help="Optimiser steps on the same replies; from the second on epsilon bounds what they change.", ge=1
    )
    epsilon: float = option(0.2, help="How far a reply's probability may fall, or rise, before it is clipped.", gt=0)
    epsilon_high: float | None = option(None, help="How far it may rise; none: as epsilon.", gt=0)
    mask_truncated: bool = option(False, help="Learn nothing from replies that were cut at max_new_tokens.")
    max_prompt: int | None = option(
        None, help="Cut longer prompts at their beginning; none cuts no prompt.", unit="tokens", ge=1
    )
    rows: ClassVar[str] = "prompts"
