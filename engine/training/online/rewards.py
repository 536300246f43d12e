"""Rewards of replies: a task's metric, or the score of a reward model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.evaluation import TASKS
from engine.inference import lock
from engine.training.job import Job
from engine.training.online.options import OnlineOptions

Reward = Callable[[Sequence[dict[str, Any]], Sequence[str]], list[float]]
"""`(rows, replies)` -> the reward of each reply; a row has `prompt` (a conversation as JSON) and `reference`."""


def reward_of(job: Job) -> Reward:
    """What the profile names. Loads a reward model onto the run's device. Raises ProblemError."""
    options: OnlineOptions = job.profile.method  # type: ignore[assignment]
    if options.reward.task is None:
        return _scored(job)
    task, metric = importlib.import_module(TASKS[options.reward.task]), options.reward.metric

    def measured(rows: Sequence[dict[str, Any]], replies: Sequence[str]) -> list[float]:
        return [
            float(task.score([reply], [row["reference"]])[metric]) for row, reply in zip(rows, replies, strict=True)
        ]

    return measured


def _scored(job: Job) -> Reward:
    """The score of the conversation that prompt and reply are, rendered by the reward model's own template as it was when it was trained."""
    import torch

    model, tokenizer = _load(job)
    size = job.profile.training.micro_batch
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

    def sequence(row: dict[str, Any], reply: str) -> Any:
        asked = json.loads(row["prompt"])
        messages = [*asked["messages"], {"role": "assistant", "content": reply}]
        ids = tokenizer.apply_chat_template(messages, tools=asked.get("tools"), return_dict=False)
        return torch.tensor(ids[:longest], device=job.device.name)

    def scored(rows: Sequence[dict[str, Any]], replies: Sequence[str]) -> list[float]:
        sequences = [sequence(*each) for each in zip(rows, replies, strict=True)]
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))  # neighbours of like length
        found = [0.0] * len(sequences)
        for start in range(0, len(order), size):
            some = [sequences[index] for index in order[start : start + size]]
            ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=tokenizer.pad_token_id)
            masks = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in some], batch_first=True)
            with torch.no_grad():
                scores = model(input_ids=ids, attention_mask=masks, use_cache=False).logits[:, 0]
            for index, score in zip(order[start : start + size], scores.tolist(), strict=True):
                found[index] = score
        return found

    return scored


def _load(job: Job) -> tuple[Any, Any]:
    """The reward model, frozen, and its tokenizer."""
    from peft import PeftModel

    from engine.models import tokenizers
    from engine.models.options import ModelOptions
    from engine.training import base

    named = job.prepared["reward"]
    job.voice.phase("loading", f"the reward model {named['label']}")
    options = ModelOptions(dtype=named["dtype"], quantization=named["quantization"])
    unpack = job.profile.training.optimizations
    model = base.load(named["base"], options, job.device, lambda done, total: None, unpack=unpack, scores=True)
    if named["adapter"]:
        model = PeftModel.from_pretrained(model, named["adapter"])
    tokenizer = tokenizers.load(named["tokenizer"])
    recorded = Path(named["tokenizer"]) / "lock.json"
    if recorded.is_file():
        lock.check(json.loads(recorded.read_text(encoding="utf-8")), tokenizer, recorded.parent)
    model.config.pad_token_id = tokenizer.pad_token_id  # by which the class finds the last token, as in training
    return model.requires_grad_(False).eval(), tokenizer
