"""Rewards of replies: a task's metric, or the score of a reward model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.inference.scorer import Scorer
from engine.models import template_lock
from engine.models.template_metadata import read_thinking_marks
from engine.options.model import ModelOptions
from engine.tasks.task import load_task
from engine.tasks.thoughts import MARKS, drop_thoughts
from engine.training.job import Job
from engine.training.online.options import OnlineOptions

Reward = Callable[[Sequence[dict[str, Any]], Sequence[str]], list[float]]
"""`(rows, replies)` -> the reward of each reply; a row has `prompt` (a conversation as JSON) and `reference`.
Replies are without thinking, which no reward counts."""


def make_reward(job: Job) -> Reward:
    """The reward function that the profile names. Loads a reward model onto the run's device. Raises ProblemError."""
    options: OnlineOptions = job.profile.method  # type: ignore[assignment]
    if job.simulated:  # nothing is scored
        return lambda rows, replies: [0.0] * len(replies)
    if options.reward.task is None:
        return _make_model_reward(job)
    task, metric = load_task(options.reward.task), options.reward.metric
    assert metric is not None

    marks = (read_thinking_marks(job.tokenizer.chat_template), *MARKS)

    def measure(rows: Sequence[dict[str, Any]], replies: Sequence[str]) -> list[float]:
        return [
            float(task.score([reply], [drop_thoughts(row["reference"], marks)])[metric])
            for row, reply in zip(rows, replies, strict=True)
        ]

    return measure


def _make_model_reward(job: Job) -> Reward:
    """A reward model's score of prompt and reply, rendered with the template that the reward model was trained with."""
    scorer = _load_scorer(job)
    size = job.profile.training.rows
    longest = int(getattr(scorer.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

    def render(row: dict[str, Any], reply: str) -> list[int]:
        conversation = json.loads(row["prompt"])
        messages = [*conversation["messages"], {"role": "assistant", "content": reply}]
        ids = template_lock.render(scorer.tokenizer, messages, conversation.get("tools"), reply_follows=False)
        return ids[:longest]

    def score_all(rows: Sequence[dict[str, Any]], replies: Sequence[str]) -> list[float]:
        sequences = [render(*each) for each in zip(rows, replies, strict=True)]
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))  # batches of similar length
        found = [0.0] * len(sequences)
        for start in range(0, len(order), size):
            some = order[start : start + size]
            for index, score in zip(some, scorer.scores([sequences[index] for index in some]), strict=True):
                found[index] = score
        return found

    return score_all


def _load_scorer(job: Job) -> Scorer:
    source = job.prepared["reward"]
    job.reporter.set_phase("loading", f"the reward model {source['label']}")
    options = ModelOptions(dtype=source["dtype"], quantization=source["quantization"])
    unpack = job.profile.training.optimizations
    scorer = Scorer(source["base"], source["adapter"], source["tokenizer"], options, job.device, unpack=unpack)
    recorded = Path(source["tokenizer"]) / "lock.json"
    if recorded.is_file():
        template_lock.check(json.loads(recorded.read_text(encoding="utf-8")), scorer.tokenizer, recorded.parent)
    return scorer
