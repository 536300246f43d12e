"""A training session: one attempt of a run, from prepared data to its last checkpoint."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config import stage_plan
from engine.config.profile import Profile
from engine.config.settable import SETTABLE
from engine.models import devices
from engine.models.base import load_tokenizer
from engine.models.versions import list_versions
from engine.options import thresholds
from engine.protocol import stages
from engine.protocol.home import RunDirectory, write_private
from engine.protocol.journal import Ledger, Start
from engine.protocol.messages import Problem, ProblemError
from engine.training import (
    assemble,
    checkpoints,
    doubts,
    lineage,
    live_settings,
    memory,
    model,
    performance,
    ranks,
    report,
    resume,
)
from engine.training.exceptions import RestartFrom
from engine.training.inbox import Inbox
from engine.training.job import Job
from engine.training.lineage import Lineage
from engine.training.loggers import open_loggers
from engine.training.loop import TrainingLoop
from engine.training.plots import Plots
from engine.training.reporter import Reporter


def train(
    run: RunDirectory,
    attempt: int,
    profile: Profile,
    directory: Path,
    from_step: int | None,
    reporter: Reporter,
    inbox: Inbox,
) -> tuple[str, int]:
    """Train to the end, or until the run is stopped; returns `completed` or `stopped`, and the step.

    A relative `checkpoint.output` is relative to `directory`. Raises ProblemError, and whatever the libraries raise.
    """
    started = time.time()
    history = lineage.trace(run)
    resumed = _checkpoint_to_resume(run, history, from_step)
    live, skipped = profile, set[int]()
    later = history.changes if from_step is None else []
    if resumed:
        live, skipped = live_settings.replay(resumed / checkpoints.RESUME_FOLDER / live_settings.FILE, profile, later)
    output = Path(directory, live.checkpoint.output).expanduser() if live.checkpoint.output else None
    if output:
        checkpoints.check_output(output)
    job = _make_job(run, attempt, profile, live, reporter, inbox)
    job.resumed_from = resumed
    job.skipped |= skipped
    job.replayed = {entry.name: entry.new for entry in later}
    job.checkpoints = {
        step: metrics for step, metrics in checkpoints.list_with_metrics(run).items() if step in history.steps
    }
    if from_step is not None:
        newest = history.newest(run.checkpoint_steps())
        reporter.write(
            Ledger(attempt=attempt, code="mark.rewind", step=from_step, name=lineage.REWIND, old=newest, new=from_step)
        )
    open_loggers(job)
    try:
        loop = _train_until_done(job)
    finally:
        job.hot_chat.close(reporter.link, inbox.step)
    if job.ranks.first:
        _finish(job, loop, output, time.time() - started)
    job.ranks.broadcast(None)  # no rank exits before the last checkpoint is verified
    return loop.outcome, loop.step


def _checkpoint_to_resume(run: RunDirectory, history: Lineage, from_step: int | None) -> Path | None:
    """The newest complete checkpoint of the run's lineage, or that of `from_step`; None for a run that has none."""
    steps = run.checkpoint_steps()
    if from_step is not None and from_step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise ProblemError(
            Problem(
                code="checkpoint.not_found",
                title=f"There is no checkpoint of step {from_step}",
                hint=f"the checkpoints are: {kept}",
            )
        )
    step = history.newest(steps) if from_step is None else from_step
    return run.checkpoint(step) if step is not None else None


def _train_until_done(job: Job) -> TrainingLoop:
    """Run the loop to its last step and return it; it is built again, in this process, when it raises RestartFrom."""
    results: dict[int, dict[str, float]] = {}
    restarted = False
    while True:
        ended = _train_once(job, results, restarted=restarted)
        if isinstance(ended, TrainingLoop):
            return ended
        memory.release()
        restarted, job.profile = True, ended.profile
        job.resumed_from = job.run.checkpoint(ended.step) if ended.step is not None else None
        results = {step: values for step, values in results.items() if step <= (ended.step or 0)}


def _train_once(job: Job, results: dict[int, dict[str, float]], *, restarted: bool) -> TrainingLoop | RestartFrom:
    """Build the loop and run it; returns it after its last step, or the RestartFrom that ended it."""
    loop = assemble.make_loop(job, model.build(job))
    loop.evaluator.results = results
    job.saved_step = loop.step if job.resumed_from else -1
    if loop.step >= loop.max_steps:
        _report_start(job, loop, "", warn=False)
        return loop
    try:
        loop.run(lambda drift: _report_start(job, loop, drift, warn=not restarted))
    except RestartFrom as request:
        return RestartFrom(request.profile, request.step)  # a new one: the raised one keeps its frames alive
    return loop


def _make_job(
    run: RunDirectory, attempt: int, submitted: Profile, live: Profile, reporter: Reporter, inbox: Inbox
) -> Job:
    """Set up device, ranks, threads and tokenizer: everything that is needed before the model."""
    import torch
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
    _, local, world = ranks.read_place()
    kind = devices.find_accelerator()
    performance.check_device(live.training, kind)
    performance.configure_torch(live.training)
    devices.set_threads(live.training.threads, world)
    device = devices.choose_device(kind, local, live.model.dtype)
    group = replace(ranks.join_ranks(kind), on_wait=reporter.link.set_waiting)
    # Each rank times the dtypes itself; a close result must not differ between ranks.
    device = replace(device, compute=group.broadcast(device.compute))
    inbox.pids = group.gather(inbox.pids[0])
    prepared = json.loads(run.prepared.read_text())
    if group.first:
        checkpoints.remove_partial(run)
    torch.manual_seed(live.training.seed)
    return Job(
        run=run,
        attempt=attempt,
        submitted=submitted,
        profile=live,
        prepared=prepared,
        ranks=group,
        device=device,
        reporter=reporter,
        inbox=inbox,
        plots=Plots(run, group.first and live.logging.plots),
        tokenizer=load_tokenizer(
            prepared.get("tokenizer") or prepared["base"], live.model.trust_remote_code, prepared.get("template")
        ),
    )


def _report_start(job: Job, loop: TrainingLoop, drift: str, *, warn: bool) -> None:
    """Report the facts of this attempt and warn about the machine. `drift` describes how exact a resume is."""
    step, batches = loop.step, loop.batches
    compute = str(job.device.compute).removeprefix("torch.")
    job.reporter.write(
        Start(
            attempt=job.attempt,
            step=step,
            max_steps=loop.max_steps,
            epochs=loop.max_steps / batches.per_epoch,
            steps_per_epoch=batches.per_epoch,
            processes=job.ranks.world,
            global_batch=batches.size,
            parameters=_count_weights(loop.model.parameters()),
            trainable_parameters=_count_weights(p for p in loop.model.parameters() if p.requires_grad),
            rows=len(batches.lengths),
            trained_tokens=job.prepared["trained_tokens"],
            resumed=drift,
            facts={
                "device": job.device.label,
                "dtype": job.profile.model.dtype,
                "quantization": job.profile.model.quantization,
                "compute_dtype": compute,
                "settings": {key: live_settings.get_setting(job.profile, key) for key in SETTABLE},
                "thresholds": [
                    (threshold.name, threshold.comparison, threshold.bound)
                    for threshold in map(thresholds.parse_threshold, job.profile.evaluation.thresholds)
                ],
                **list_versions(),
            },
        )
    )
    for key, message in doubts.list_new_doubts(job.profile, loop.max_steps, batches.per_epoch) if warn else ():
        if not step:
            job.reporter.warn(code="training.doubtful", message=f"{key} {message}", hint=f"change {key}")
    if warn and drift not in ("", resume.EXACT):
        job.reporter.warn(
            code="resume.drift",
            step=step,
            message=f"resumed, but {drift}",
            hint="losses will differ from those of an uninterrupted run; nothing to do if this is intended",
        )
    if job.device.kind == "cpu" and compute != job.profile.model.dtype:
        job.reporter.warn(
            code="device.slow_dtype",
            message=f"This CPU computes {job.profile.model.dtype} more slowly than float32, so float32 is used; the "
            f"weights keep their {job.profile.model.dtype} values",
            hint="nothing to do; a GPU, or a CPU with AMX or AVX512-BF16, computes in bfloat16",
        )


def _count_weights(parameters: Any) -> int:
    """The number of weights; 4-bit weights, packed two to a byte, are counted one by one."""
    return sum(
        math.prod(state.shape) if (state := getattr(p, "quant_state", None)) is not None else p.numel()
        for p in parameters
    )


def _finish(job: Job, loop: TrainingLoop, output: Path | None, seconds: float) -> None:
    """Verify the last checkpoint, publish it, and write the report."""
    step, results = loop.step, loop.evaluator.results
    last = job.run.checkpoint(step)
    if loop.outcome == "completed":
        with loop.averaged_weights():
            checkpoints.read_back(last, loop.model, job.profile.model.dtype)
        if output:
            job.reporter.set_phase("saving", str(output))
            checkpoints.publish(last, output)
    job.reporter.close_loggers()
    if not job.plots.finish(step):
        job.reporter.warn(
            code="plot.failed",
            step=step,
            message="not all loss curves could be drawn",
            hint=f"the log says why; `cockpit plot {job.run.id}` tries again",
        )
    last_values = results[max(results)] if results else {}
    verdicts = thresholds.check_thresholds(job.profile.evaluation.thresholds, last_values)
    # With an evaluation on test rows, the thresholds are checked there, once.
    judged = loop.outcome == "completed" and not stage_plan.has_test_rows(job.profile)
    for verdict in verdicts if judged else ():
        if not verdict.passed:
            job.reporter.warn(
                code="evaluation.threshold_missed",
                step=step,
                message=f"a threshold was not reached: {verdict}",
                hint="train on, on more or better data, or change evaluation.thresholds",
            )
    report.write_report(job, loop.outcome, step, results, verdicts, seconds)
    if loop.outcome == "completed":
        write_private(job.run.result(stages.TRAIN), json.dumps({"step": step, "seconds": seconds}).encode())
