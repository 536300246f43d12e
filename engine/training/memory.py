"""Running out of memory: detected on any rank, answered with smaller micro-batches of the same global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from engine.config.profile import Profile
from engine.models import accelerator
from engine.models.memory import is_out_of_memory
from engine.protocol.text import first_line
from engine.training import live_settings
from engine.training.ranks import Ranks

T = TypeVar("T")


class MemoryWatch:
    """Records whether this rank ran out of memory in the current global batch.

    A rank that ran out must not raise at once: the others would wait for it in the next collective. It records the
    error and computes nothing more, and all ranks learn of it when they vote at the end of the global batch.
    """

    def __init__(self, *, recovers: bool = True) -> None:
        """`recovers` is false where the others wait for this rank in the middle of a pass: then the error ends it."""
        self.recovers = recovers
        self.error = ""
        """The allocator's message; empty while there was enough memory."""

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Context that records an out-of-memory error instead of raising it."""
        try:
            yield
        except Exception as error:
            if not self.recovers or not is_out_of_memory(error):
                raise
            self.error = first_line(error)
        if self.error:
            accelerator.release()

    def reset(self) -> None:
        """Clear the error for a new global batch."""
        self.error = ""


def smaller_micro_batch(profile: Profile, longest: int = 0) -> Profile | None:
    """The profile with half the micro-batch and double the accumulation, hence the same global batch; None at one row,
    or at the tokens of the `longest` row.

    An odd micro-batch is divided by its smallest divisor, so that the product stays the same: 9 × 1 becomes 3 × 3.
    """
    rows = profile.training.rows
    if budget := profile.training.tokens_per_batch:
        if budget <= longest:
            return None
        profile = live_settings.replace_setting(profile, "training.tokens_per_batch", max(longest, budget // 2))
        return live_settings.replace_setting(profile, "training.accumulation", 2 * profile.training.accumulation)
    if rows == 1:
        return None
    by = next(divisor for divisor in range(2, rows + 1) if rows % divisor == 0)
    profile = live_settings.replace_setting(profile, "training.micro_batch", rows // by)
    return live_settings.replace_setting(profile, "training.accumulation", profile.training.accumulation * by)


def compute_on_all(ranks: Ranks, compute: Callable[[], T], *, recovers: bool = True) -> list[T]:
    """Every rank's result, on every rank. When one rank runs out of memory, raises OutOfMemoryError on all of them: the
    others would otherwise wait for it."""
    import torch

    watch, found = MemoryWatch(recovers=recovers), None
    with watch.catch():
        found = compute()
    shares: list[tuple[Any, str]] = ranks.gather((found, watch.error))
    for _, error in shares:
        if error:
            raise torch.OutOfMemoryError(error)
    return [value for value, _ in shares]
