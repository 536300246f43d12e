"""Where a resumed run stands in its data when the number of ranks, or the global batch, is another than before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.protocol.messages import Problem, ProblemError
from engine.training import live_settings, resume
from engine.training.checkpoints import RESUME_FOLDER
from engine.training.job import Job
from engine.training.online.options import OnlineOptions

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

_SHAPE = ("training.micro_batch", "training.accumulation")


def keep_global_batch(job: Job) -> None:
    """Divide the checkpoint's global batch among the ranks that there are now, unless the profile's own micro-batch has
    been changed: then step, epoch and learning rate mean the same rows as before."""
    if job.resumed_from is None:
        return
    micro, accumulation, ranks = _read_shape(job)
    training, world = job.profile.training, job.ranks.world
    if ranks == world or (training.micro_batch, training.accumulation) != (micro, accumulation):
        return
    share, rest = divmod(micro * accumulation * ranks, world)
    if rest or isinstance(job.profile.method, OnlineOptions):
        return  # `check` says what that means
    kept = max(size for size in range(1, micro + 1) if share % size == 0)
    for key, value in zip(_SHAPE, (kept, share // kept), strict=True):
        if live_settings.get_setting(job.profile, key) != value:
            job.profile = live_settings.replace_setting(job.profile, key, value)
            job.replayed[key] = value
    job.reporter.warn(
        code="resume.ranks_changed",
        step=int(job.resumed_from.name.removeprefix("step-")),
        message=f"{world} ranks rather than {ranks}: training.micro_batch {micro} → {kept} and training.accumulation "
        f"{accumulation} → {share // kept} keep the global batch of {share * world} rows",
        hint="nothing to do: the run goes on at the same row",
    )


def check(job: Job, loop: TrainingLoop) -> None:
    """Say how much of the data is trained twice or not at all when the global batch has another size than before.
    Raises ProblemError when no step is left."""
    if job.resumed_from is None:
        return
    before, now = _count_rows(job), loop.batches.micro_batch * loop.batches.accumulation * loop.batches.world
    rows, step = len(loop.batches.lengths), loop.step
    changed = before != now
    if step > loop.max_steps or (changed and step == loop.max_steps):
        cause = f"step {step} is done, and with these settings step {loop.max_steps} is the last"
        raise ProblemError(
            Problem(
                code="resume.nothing_left",
                title="No step is left to train",
                cause=f"{cause}: {_describe_shift(before, now, rows, step)}" if changed else cause,
                hint=f"set training.max_steps above {step}, or training.epochs to more",
            )
        )
    if changed:
        job.reporter.warn(
            code="resume.position",
            step=step,
            message=_describe_shift(before, now, rows, step),
            hint="set training.micro_batch and training.accumulation so that the global batch is the same as before",
        )


def _describe_shift(before: int, now: int, rows: int, step: int) -> str:
    then, position = step / -(-rows // before), step / -(-rows // now)
    what = "are not trained" if position > then else "are trained again"
    return (
        f"the global batch has {now} rows rather than {before}, so step {step} is at epoch {position:.2f} rather than "
        f"{then:.2f}: {abs(position - then):.2f} epochs {what}"
    )


def _read_shape(job: Job) -> Sequence[int]:
    """Micro-batch, accumulation and ranks of the checkpoint."""
    assert job.resumed_from is not None
    inner = job.resumed_from / RESUME_FOLDER
    kept = json.loads((inner / live_settings.FILE).read_text())["live"]
    ranks = json.loads((inner / resume.FILE).read_text())["ranks"]
    default = job.profile.training
    return (
        kept.get("training.micro_batch", default.micro_batch),
        kept.get("training.accumulation", default.accumulation),
        ranks,
    )


def _count_rows(job: Job) -> int:
    micro, accumulation, ranks = _read_shape(job)
    return micro * accumulation * ranks
