"""`training.micro_batch: auto`: as many rows in a forward pass as fit, found out before the first step.

A run begins with one row in each pass. In the rehearsal the longest rows go through forward and backward passes in
ever larger micro-batches, until a rank runs out of memory, the memory that is left would not hold the next one, or a
pass has all rows of a rank's global batch. The global batch stays: what the micro-batch gains, the accumulation loses.
The result is journaled and in every checkpoint, so a resumed run goes on with it. It searches again only if its profile
has another micro-batch or accumulation than before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.config.profile import Profile
from engine.hardware import host_memory
from engine.models import accelerator
from engine.options.tables import AUTO
from engine.protocol.journal import Ledger
from engine.training import live_settings, memory_report
from engine.training.exceptions import RestartFrom
from engine.training.online.batching import PromptBatches

if TYPE_CHECKING:
    from engine.training.job import Job
    from engine.training.loop import TrainingLoop

MARGIN = 0.1
"""Share of a device's memory, or of the host's, that is left over: the allocator's gaps grow in a long run."""


def begin(job: Job) -> None:
    """Give a run with `auto` one row in each pass to begin with, until the rehearsal has searched. A checkpoint's
    settings have a number."""
    if job.profile.training.micro_batch != AUTO:
        return
    job.profile = live_settings.replace_setting(job.profile, "training.micro_batch", 1)
    job.grows = True


def grow(loop: TrainingLoop) -> None:
    """In the rehearsal, after a step: find the largest micro-batch that fits. Raises RestartFrom with it, after a
    search. Called on every rank."""
    job = loop.job
    if not job.grows:
        return
    job.grows = False
    searches, total = loop.memory.recovers, loop.profile.training.accumulation
    rows = _find_largest(loop) if searches else 1
    live = live_settings.replace_setting(loop.profile, "training.micro_batch", rows)
    live = live_settings.replace_setting(live, "training.accumulation", total // rows)
    _report(loop, live)
    if searches and total > 1:  # with one row too: the peaks are to be those of the run, and not of what was tried
        accelerator.reset_peak()
        raise RestartFrom(live, loop.step or None)


def _find_largest(loop: TrainingLoop) -> int:
    """The most rows, among the divisors of the accumulation, whose passes fit: doubled until they do not, then what
    lies between."""
    total, fits = loop.profile.training.accumulation, 1
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    peak = each = memory_report.read_resident_peak() or 0  # a row takes no more than the process that computes it
    while larger := next((size for size in divisors if size >= 2 * fits), None):
        if not _has_room(loop, each * (larger - fits)) or not _try(loop, larger):
            break
        now = memory_report.read_resident_peak() or 0
        each = (now - peak) // (larger - fits) or now // larger  # where the last rows did not show, it is not known
        fits, peak = larger, now
    else:
        return fits
    for size in [size for size in divisors if fits < size < larger]:
        if not _has_room(loop, each * (size - fits)) or not _try(loop, size):
            break
        fits = size
    return fits


def _try(loop: TrainingLoop, rows: int) -> bool:
    """Whether passes over the longest rows fit on every rank, with a margin."""
    longest, method = _list_longest(loop, rows), loop.method
    loop.memory.reset()
    for _ in range(min(loop.profile.training.accumulation // rows, 2)):
        with loop.memory.catch():
            batch = method.longest_batch([method.rows[row] for row in longest])
            loop.compute_gradients([batch], max(method.units(batch) * loop.ranks.world, 1.0))
        loop.reporter.link.report_progress()
    (failures,) = loop.ranks.sum([bool(loop.memory.error)])
    loop.memory.reset()
    if failures:
        accelerator.release()
    fits = not failures and _has_room(loop, 0)
    accelerator.reset_peak()  # that of a size which did not fit says nothing about a smaller one
    return fits


def _list_longest(loop: TrainingLoop, rows: int) -> list[int]:
    lengths, skipped = loop.batches.lengths, loop.batches.skipped
    kept = (row for row in range(len(lengths)) if row not in skipped)
    longest = sorted(kept, key=lambda row: (-lengths[row], row))[:rows]
    if isinstance(loop.batches, PromptBatches):  # rows are replies, and a prompt has several
        return [longest[index % len(longest)] for index in range(rows)]
    return longest


def _has_room(loop: TrainingLoop, more: int) -> bool:
    """Whether the margin is left on every rank's device. A rank without one must find `more` bytes and the margin free
    in the host's memory: running out of that is no error that a rank could catch, the system ends a process."""
    peak, room = accelerator.read_peak(), accelerator.read_room()
    if peak is not None and room is not None:
        enough = peak <= (1 - MARGIN) * room
    else:
        free = host_memory.read_available() - MARGIN * host_memory.read_total()
        enough = more * loop.ranks.world <= free
    (lacking,) = loop.ranks.sum([not enough])
    return not lacking


def _report(loop: TrainingLoop, live: Profile) -> None:
    """Journal the micro-batch that has been found."""
    job, step, recovers, training = loop.job, loop.step, loop.memory.recovers, live.training
    found = f"training.micro_batch auto: {training.micro_batch}, with training.accumulation {training.accumulation}"
    why = "" if recovers else "; ranks that share the weights cannot search"
    job.reporter.warn(
        code="memory.batch_found",
        step=step,
        message=f"{found}: the same global batch{why}",
        hint="nothing to do" if recovers else "name the number of rows; `cockpit fit` says how many fit",
    )
    for key, old in _list_changes(job, live):
        new = live_settings.get_setting(live, key)
        job.reporter.write(Ledger(attempt=job.attempt, code="mark.setting", step=step, name=key, old=old, new=new))


def _list_changes(job: Job, live: Profile) -> Iterator[tuple[str, object]]:
    yield "training.micro_batch", AUTO
    before = job.profile.training.accumulation
    if before != live.training.accumulation:
        yield "training.accumulation", before
