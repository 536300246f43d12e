"""What to do when a micro-batch does not fit: the same global batch in smaller pieces."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

from engine.config.profile import Profile
from engine.models.memory import is_out_of_memory
from engine.training import steering
from engine.training.ranks import Ranks

T = TypeVar("T")

exhausted = is_out_of_memory


def smaller(profile: Profile) -> Profile | None:
    """The profile with half the micro-batch and double the accumulation, so the same global batch; None at one row.

    A micro-batch without a half is cut by its smallest divisor, so that the product stays: 9 × 1 becomes 3 × 3.
    """
    rows = profile.training.micro_batch
    if rows == 1:
        return None
    by = next(divisor for divisor in range(2, rows + 1) if rows % divisor == 0)
    profile = steering.replaced(profile, "training.micro_batch", rows // by)
    return steering.replaced(profile, "training.accumulation", profile.training.accumulation * by)


def shared(ranks: Ranks, compute: Callable[[], T]) -> list[T]:
    """Every rank's result, on every rank. Raises OutOfMemoryError on all of them when memory was not enough on one: those that had
    enough would otherwise wait for it."""
    import torch

    found, said = None, ""
    try:
        found = compute()
    except Exception as error:
        if not exhausted(error):
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
    both: list[tuple[Any, str]] = ranks.gather((found, said))
    for _, words in both:
        if words:
            raise torch.OutOfMemoryError(words)
    return [value for value, _ in both]


def release() -> None:
    """Give back what nobody holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
