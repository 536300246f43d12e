"""What happens when a micro-batch does not fit: the same global batch in smaller pieces."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from engine.config.profile import Profile
from engine.models.memory import is_out_of_memory
from engine.protocol.text import first_line
from engine.training import live_settings
from engine.training.ranks import Ranks

T = TypeVar("T")


class MemoryWatch:
    """Whether this rank ran out of memory in the global batch in work.

    A rank that ran out must not raise at once: the others would wait for it in the next collective. It records the error, computes nothing
    more, and the ranks find out together when they vote at the end of the global batch.
    """

    def __init__(self) -> None:
        self.error = ""
        """What the allocator said; empty while memory was enough."""

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Record an out-of-memory error of the block instead of raising it."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.error = first_line(error)
        if self.error:
            release()

    def reset(self) -> None:
        """A new global batch begins."""
        self.error = ""


def smaller_micro_batch(profile: Profile) -> Profile | None:
    """The profile with half the micro-batch and double the accumulation, so the same global batch; None at one row.

    A micro-batch that has no half is divided by its smallest divisor, so that the product stays: 9 × 1 becomes 3 × 3.
    """
    rows = profile.training.micro_batch
    if rows == 1:
        return None
    by = next(divisor for divisor in range(2, rows + 1) if rows % divisor == 0)
    profile = live_settings.replace_setting(profile, "training.micro_batch", rows // by)
    return live_settings.replace_setting(profile, "training.accumulation", profile.training.accumulation * by)


def compute_on_all(ranks: Ranks, compute: Callable[[], T]) -> list[T]:
    """Every rank's result, on every rank. Raises OutOfMemoryError on all of them when one ran out of memory: those that did not would
    otherwise wait for it."""
    import torch

    watch, found = MemoryWatch(), None
    with watch.catch():
        found = compute()
    shares: list[tuple[Any, str]] = ranks.gather((found, watch.error))
    for _, error in shares:
        if error:
            raise torch.OutOfMemoryError(error)
    return [value for value, _ in shares]


def release() -> None:
    """Give unused memory back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
