"""Where a resumed run stands in its data when the number of ranks, or the global batch, is another than before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.prep.batching import GlobalBatches
from engine.prep.token_batching import TokenBatches, TokenPlan
from engine.protocol.messages import Problem, ProblemError
from engine.training import live_settings, resume
from engine.training.checkpoints import RESUME_FOLDER
from engine.training.job import Job
from engine.training.online.batching import make_global_batches
from engine.training.online.options import OnlineOptions

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

_SHAPE = ("training.micro_batch", "training.accumulation")


def plan_tokens(job: Job) -> TokenPlan | None:
    """What a global batch in tokens is: that of the checkpoint, unless the profile's own settings have been changed
    since; so a global batch keeps its rows with other ranks, and with smaller micro-batches."""
    training = job.profile.training
    if not training.tokens_per_batch:
        return None
    if job.resumed_from is not None:
        kept = _read_settings(job.resumed_from)
        unchanged = all(
            kept["submitted"].get(key) == live_settings.get_setting(job.submitted, key) for key in live_settings.SHAPE
        )
        if unchanged and kept.get("plan"):
            return TokenPlan(*kept["plan"])
    return TokenPlan(training.tokens_per_batch, training.accumulation * job.ranks.world)


def keep_global_batch(job: Job) -> None:
    """Divide the checkpoint's global batch among the ranks that there are now, unless the profile's own micro-batch has
    been changed: then step, epoch and learning rate mean the same rows as before."""
    job.plan = plan_tokens(job)
    if job.resumed_from is None or job.plan is not None:
        return
    micro, accumulation, ranks = _read_shape(job)
    training, world = job.profile.training, job.ranks.world
    if ranks == world or (training.rows, training.accumulation) != (micro, accumulation):
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
    step = loop.step
    before, now = _describe_size(*_read_size(job)), _describe_size(_count_rows(loop.batches), job.plan)
    changed = before != now
    position = step / loop.batches.per_epoch
    then = step / _count_steps_before(job, loop) if changed else position
    if step > loop.max_steps or (changed and step == loop.max_steps):
        cause = f"step {step} is done, and with these settings step {loop.max_steps} is the last"
        raise ProblemError(
            Problem(
                code="resume.nothing_left",
                title="No step is left to train",
                cause=f"{cause}: {_describe_shift(before, now, step, then, position)}" if changed else cause,
                hint=f"set training.max_steps above {step}, or training.epochs to more",
            )
        )
    if changed:
        own = "training.tokens_per_batch" if job.plan else "training.micro_batch"
        job.reporter.warn(
            code="resume.position",
            step=step,
            message=_describe_shift(before, now, step, then, position),
            hint=f"set {own} and training.accumulation so that the global batch is the same as before",
        )


def _describe_shift(before: str, now: str, step: int, then: float, position: float) -> str:
    what = "are not trained" if position > then else "are trained again"
    return (
        f"the global batch has {now} rather than {before}, so step {step} is at epoch {position:.2f} rather than "
        f"{then:.2f}: {abs(position - then):.2f} epochs {what}"
    )


def _read_shape(job: Job) -> Sequence[int]:
    """Micro-batch, accumulation and ranks of the checkpoint."""
    assert job.resumed_from is not None
    inner = job.resumed_from / RESUME_FOLDER
    kept = _read_settings(job.resumed_from)["live"]
    ranks = json.loads((inner / resume.FILE).read_text())["ranks"]
    default = job.profile.training
    return (
        kept.get("training.micro_batch", default.rows),
        kept.get("training.accumulation", default.accumulation),
        ranks,
    )


def _count_rows(batches: GlobalBatches) -> int:
    return batches.micro_batch * batches.accumulation * batches.world


def _read_size(job: Job) -> tuple[int, TokenPlan | None]:
    """The rows of the checkpoint's global batch, and its plan if it is one of tokens."""
    assert job.resumed_from is not None
    micro, accumulation, ranks = _read_shape(job)
    kept = _read_settings(job.resumed_from).get("plan")
    return micro * accumulation * ranks, TokenPlan(*kept) if kept else None


def _describe_size(rows: int, plan: TokenPlan | None) -> str:
    return f"up to {plan.budget * plan.groups} tokens ({plan.groups} × {plan.budget})" if plan else f"{rows} rows"


def _count_steps_before(job: Job, loop: TrainingLoop) -> int:
    """The steps that an epoch had with the checkpoint's global batch."""
    assert job.resumed_from is not None
    settings, profile = _read_settings(job.resumed_from)["live"], job.profile
    for key in live_settings.SHAPE:
        profile = live_settings.replace_setting(
            profile, key, settings.get(key, live_settings.get_setting(profile, key))
        )
    _, _, ranks = _read_shape(job)
    padded = isinstance(loop.batches, TokenBatches) and loop.batches.padded
    plan = _read_size(job)[1]
    return make_global_batches(profile, loop.batches.lengths, 0, ranks, plan=plan, padded=padded).per_epoch


def _read_settings(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((checkpoint / RESUME_FOLDER / live_settings.FILE).read_text())
    return content
