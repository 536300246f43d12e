"""Settings that are valid, and with which a run will hardly do what they say: told when a profile is checked as far as
the number of steps is known then, and when the run starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FEW_TOKENS = 1024
"""Tokens in a micro-batch under which starting a layer's kernels takes longer than computing them on a large GPU."""


def check_doubts(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for what can be told before rows are counted."""
    training = sections["training"]
    yield from list_doubts(sections, training.max_steps, None)


def list_doubts(sections: Mapping[str, Any], steps: int | None, per_epoch: int | None) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for a run of `steps` with so many `per_epoch`; either is None if it is not known."""
    yield from _doubt_warmup(sections["training"], steps)
    data = sections["data"]
    if data.validation or (data.split and data.split.validation):
        yield from _doubt_best(sections["checkpoint"], sections["evaluation"], steps, per_epoch)


def list_new_doubts(profile: Any, steps: int, per_epoch: int) -> list[tuple[str, str]]:
    """The doubts about a run that starts, without those that were told when its profile was checked."""
    sections = vars(profile)
    told = dict(list_doubts(sections, profile.training.max_steps, None))
    return [(key, message) for key, message in list_doubts(sections, steps, per_epoch) if key not in told]


def describe_small_batches(profile: Any, device_kind: str, lengths: Sequence[int]) -> tuple[str, str]:
    """A message and a hint for micro-batches of so few tokens that a GPU mostly waits for work; empty otherwise.
    `lengths` are those of the training rows in tokens."""
    if (budget := profile.training.tokens_per_batch) and device_kind != "cpu":
        if min(budget, sum(lengths)) >= FEW_TOKENS:
            return "", ""
        hint = "raise training.tokens_per_batch"
        return f"a micro-batch has at most {budget} tokens: the device computes them faster than it gets the next", hint
    rows, accumulation = profile.training.rows, profile.training.accumulation
    tokens = round(rows * sum(lengths) / max(1, len(lengths)))
    if device_kind == "cpu" or tokens >= FEW_TOKENS:
        return "", ""
    larger = rows * accumulation
    hint = (
        f"set training.micro_batch to {larger} and training.accumulation to 1: the global batch stays as it is"
        if accumulation > 1
        else "set data.packing to true, or raise training.micro_batch"
    )
    return f"a micro-batch has about {tokens} tokens: the device computes them faster than it gets the next", hint


def describe_long_rows(profile: Any, lengths: Sequence[int]) -> str:
    """A message about rows that are longer than a micro-batch should be; empty without such rows."""
    budget = profile.training.tokens_per_batch
    longer = [length for length in lengths if budget and length > budget]
    if not longer:
        return ""
    return (
        f"{len(longer)} of {len(lengths)} rows are longer than training.tokens_per_batch ({budget}), up to "
        f"{max(longer)} tokens: each of them is a micro-batch of its own, and takes as much memory as it is long"
    )


def _doubt_warmup(training: Any, steps: int | None) -> Iterator[tuple[str, str]]:
    if steps is None or not training.warmup:
        return
    warmup = int(training.warmup) if training.warmup >= 1 else math.ceil(steps * training.warmup)
    if warmup >= steps:
        yield (
            "training.warmup",
            f"lasts {warmup} steps, and the run has {steps}: training.learning_rate ({training.learning_rate:g}) is "
            "never reached; lower training.warmup, or train for longer",
        )


def _doubt_best(
    checkpoint: Any, evaluation: Any, steps: int | None, per_epoch: int | None
) -> Iterator[tuple[str, str]]:
    """Only a checkpoint at whose step there was an evaluation can be the best."""
    evaluated, saved = evaluation.every_steps or per_epoch, checkpoint.every_steps or per_epoch
    if evaluated is None or saved is None or (steps is not None and saved >= steps):
        return  # an unknown number, or a single checkpoint, at the last step, which is evaluated
    meet = math.lcm(evaluated, saved)
    advice = "set checkpoint.every_steps to a multiple of evaluation.every_steps"
    every = f"there is a checkpoint every {saved} steps and an evaluation every {evaluated}"
    if steps is not None and meet >= steps:
        yield (
            "checkpoint.every_steps",
            f"{every}, which do not meet before the last of {steps} steps: no other checkpoint can be the best by "
            f"{checkpoint.best_by}; {advice}",
        )
    elif saved % evaluated and evaluated % saved:
        yield (
            "checkpoint.every_steps",
            f"{every}: only every {meet} steps can a checkpoint be the best by {checkpoint.best_by}; {advice}",
        )
