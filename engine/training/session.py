"""A training session: one attempt of a run, from prepared data to its last checkpoint."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config.overrides import load_reference
from engine.config.profile import Profile
from engine.config.settable import SETTABLE
from engine.models import accelerator, base_weights, devices
from engine.models.base import load_tokenizer
from engine.models.devices import Device
from engine.models.memory import is_out_of_memory
from engine.models.quantization import count_values
from engine.models.versions import list_versions
from engine.options import thresholds
from engine.options.tables import AUTO
from engine.protocol.home import RunDirectory, host_name
from engine.protocol.journal import Ledger, Start
from engine.protocol.messages import Problem, ProblemError
from engine.storage import cache
from engine.training import (
    assemble,
    checkpoints,
    doubts,
    exhausted,
    finishing,
    growth,
    lineage,
    live_settings,
    memory_report,
    performance,
    position,
    ranks,
    repeated_rows,
    resume,
    resume_point,
)
from engine.training.exceptions import RestartFrom
from engine.training.inbox import Inbox
from engine.training.job import Job
from engine.training.lineage import Lineage
from engine.training.loggers import open_loggers
from engine.training.loop import TrainingLoop
from engine.training.parallel.choose import find_strategy
from engine.training.plots import Plots
from engine.training.preference.reference import ReferenceMethod
from engine.training.reporter import Reporter
from engine.training.resume_point import ResumePoint


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
    device, group = _join(profile, reporter)
    history = lineage.trace(run)
    point = _choose_point(run, history, from_step, group)
    resumed = run.checkpoint(point.step) if point.step is not None else None
    inbox.step = point.step or 0
    live, skipped = profile, set[int]()
    later = history.changes if from_step is None and not point.damaged else []
    if resumed:
        live, skipped = live_settings.replay(resumed / checkpoints.RESUME_FOLDER / live_settings.FILE, profile, later)
    output = Path(directory, live.checkpoint.output).expanduser() if live.checkpoint.output else None
    if output:
        checkpoints.check_output(output)
    job = _make_job(run, attempt, profile, live, reporter, inbox, device, group)
    job.resumed_from = resumed
    _identify_base(job)
    job.skipped |= skipped
    job.replayed = {entry.name: entry.new for entry in later}
    job.checkpoints = {
        step: metrics for step, metrics in checkpoints.list_with_metrics(run).items() if step in history.steps
    }
    job.written |= history.written
    growth.begin(job)
    position.keep_global_batch(job)
    exhausted.apply_notes(job, inbox.step)
    _report_rewind(job, history, point, asked=from_step is not None)
    open_loggers(job)
    memory_report.record_forecast(job)
    if profile.launch.strategy == AUTO and group.world > 1:
        job.reporter.warn(
            code="forecast.strategy",
            message="launch.strategy auto: the rows were prepared without a choice of strategy, so ddp is used",
            hint="name a strategy if that does not fit, or start with the stage prepare",
        )
    try:
        loop = _train_until_done(job)
    except Exception as error:
        sharded = find_strategy(profile.launch).sharded and job.ranks.world > 1
        if sharded and inbox.looping and is_out_of_memory(error):
            exhausted.leave_note(job, error)
        raise
    finally:
        job.hot_chat.close(reporter.link, inbox.step)
    finishing.finish(job, loop, output, time.time() - started)
    return loop.outcome, loop.step


def _report_rewind(job: Job, history: Lineage, point: ResumePoint, *, asked: bool) -> None:
    """Journal that the attempt resumes an earlier checkpoint than the newest: one that was asked for, or one before a
    damaged one."""
    step, newest = point.step, history.newest(job.run.checkpoint_steps())
    if step is None or not (asked or point.damaged):
        return
    job.reporter.write(
        Ledger(attempt=job.attempt, code="mark.rewind", step=step, name=lineage.REWIND, old=newest, new=step)
    )
    for damaged, wrong in point.damaged.items():
        job.reporter.warn(
            code="checkpoint.damaged",
            step=step,
            message=f"the checkpoint of step {damaged} is damaged: {wrong}; resuming step {step} instead, with the "
            "settings of that time",
            hint="the disk may be failing: check it, and copy the run to another one",
        )


def _train_until_done(job: Job) -> TrainingLoop:
    """Run the loop to its last step and return it; it is built again, in this process, when it raises RestartFrom."""
    results: dict[int, dict[str, float]] = {}
    restarted = False
    while True:
        ended = _train_once(job, results, restarted=restarted)
        if isinstance(ended, TrainingLoop):
            return ended
        accelerator.release()
        restarted, job.profile = True, ended.profile
        job.reporter.rewind_loggers(ended.step)
        job.resumed_from = job.run.checkpoint(ended.step) if ended.step is not None else None
        results = {step: values for step, values in results.items() if step <= (ended.step or 0)}


def _train_once(job: Job, results: dict[int, dict[str, float]], *, restarted: bool) -> TrainingLoop | RestartFrom:
    """Build the loop and run it; returns it after its last step, or the RestartFrom that ended it."""
    loop = assemble.make_loop(job)
    loop.evaluator.results = results
    if not restarted:
        position.check(job, loop)
    job.saved_step = loop.step if job.resumed_from else -1
    if loop.step >= loop.max_steps:
        _report_start(job, loop, "", warn=False)
        return loop
    try:
        loop.run(lambda drift: _report_start(job, loop, drift, warn=not restarted))
    except RestartFrom as request:
        return RestartFrom(request.profile, request.step)  # a new one: the raised one keeps its frames alive
    return loop


def _join(profile: Profile, reporter: Reporter) -> tuple[Device, ranks.Ranks]:
    """Set up this rank's device and threads, and meet the other ranks."""
    _, local, _ = ranks.read_place()
    kind = devices.find_accelerator()
    performance.check_device(profile.training, kind)
    performance.configure_torch(profile.training)
    devices.set_threads(profile.training.threads, ranks.count_local())
    device = devices.choose_device(kind, local, profile.model.dtype)
    group = replace(ranks.join_ranks(kind), on_wait=reporter.link.set_waiting)
    # Each rank times the dtypes itself; a close result must not differ between ranks.
    return replace(device, compute=group.broadcast(device.compute)), group


def _choose_point(run: RunDirectory, history: Lineage, from_step: int | None, group: ranks.Ranks) -> ResumePoint:
    """The checkpoint to resume, which rank 0 alone reads to find out whether it is whole. Raises ProblemError on every
    rank."""
    chosen: ResumePoint | Problem
    try:
        chosen = resume_point.choose(run, history, from_step) if group.first else ResumePoint()
    except ProblemError as error:
        chosen = error.problem
    chosen = group.broadcast(chosen)
    if isinstance(chosen, Problem):
        raise ProblemError(chosen)
    return chosen


def _make_job(
    run: RunDirectory,
    attempt: int,
    submitted: Profile,
    live: Profile,
    reporter: Reporter,
    inbox: Inbox,
    device: Device,
    group: ranks.Ranks,
) -> Job:
    """Read what has been prepared: everything that is needed before the model."""
    import torch
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
    places = group.gather((host_name(), inbox.pids[0]))
    inbox.pids = [pid for host, pid in places if host == host_name()]
    prepared = _read_prepared(run, group)
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


def _identify_base(job: Job) -> None:
    """Record which weights the base has. Raises ProblemError on every rank when those that the checkpoint to resume
    needs have changed since it was written."""
    base, changed = job.prepared["base"], False
    if job.ranks.first and not job.profile.model.from_scratch and base and Path(base).is_dir():
        job.base_weights = base_weights.identify(Path(base))
        if job.resumed_from and (job.profile.adapter.kind != "none" or has_reference(job.profile)):
            recorded = json.loads((job.resumed_from / "lock.json").read_bytes()).get(base_weights.KEY)
            changed = isinstance(recorded, str) and job.base_weights not in (None, recorded)
    if job.ranks.broadcast(changed):
        assert job.resumed_from
        raise ProblemError(base_weights.explain(f"The checkpoint {job.resumed_from.name}", base))


def has_reference(profile: Profile) -> bool:
    """Whether the method compares the trained model with the base."""
    method: Any = profile.method
    return issubclass(load_reference(method.method), ReferenceMethod) and method.beta > 0


def _read_prepared(run: RunDirectory, group: ranks.Ranks) -> dict[str, Any]:
    """The content of `prepared.json`. Raises ProblemError when it or the rows that it names are damaged; then it is
    removed, so that the run prepares them again."""
    wrong = group.broadcast(_find_damaged_rows(run) if group.first else "")
    if wrong:
        if group.first:
            run.prepared.unlink(missing_ok=True)
        raise ProblemError(
            Problem(
                code="data.cache_damaged",
                title="The prepared rows are damaged",
                cause=wrong,
                hint=f"`cockpit resume {run.id}` prepares them again; the disk may be failing",
            )
        )
    content: dict[str, Any] = json.loads(run.prepared.read_text())
    return content


def _find_damaged_rows(run: RunDirectory) -> str:
    try:
        prepared = json.loads(run.prepared.read_bytes())
        folders = {Path(prepared[part]) for part in ("train", "validation") if prepared.get(part)}
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        return f"{run.prepared.name} cannot be read ({type(error).__name__})"
    cached = run.path.parent.parent / "cache"
    entries = {folder.parent for folder in folders if folder.parent.parent == cached}
    found = (f"{entry.name}: {wrong}" for entry in sorted(entries) if (wrong := cache.find_damage(entry)))
    missing = (f"{folder} is missing" for folder in sorted(folders) if not folder.is_dir())
    return next(found, "") or next(missing, "")


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
                **_describe_rows(job, loop),
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
    message, hint = doubts.describe_small_batches(job.profile, job.device.kind, batches.lengths)
    if warn and message and not step and not job.grows:
        job.reporter.warn(code="training.small_batches", message=message, hint=hint)
    message = doubts.describe_long_rows(job.profile, batches.lengths)
    if warn and message and not step:
        job.reporter.warn(
            code="training.long_rows",
            message=message,
            hint="lower data.max_length, or raise training.tokens_per_batch; nothing to do if memory suffices",
        )
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


def _describe_rows(job: Job, loop: TrainingLoop) -> dict[str, Any]:
    """Facts about the training that `cockpit why` looks at."""
    duplicates = repeated_rows.count_duplicates(loop.method.rows) if job.ranks.first else 0.0
    counted = (job.prepared.get("stats") or {}).get("train") or {}
    return {
        "method": job.profile.method.kind,
        "tokens": job.prepared.get("tokens"),
        "duplicates": duplicates,
        "rows_kept": counted.get("rows"),
        "rows_truncated": counted.get("truncated"),
        "rows_masked": counted.get("masked"),
    }


def _count_weights(parameters: Any) -> int:
    """The number of weights; 4-bit weights, packed two to a byte, are counted one by one."""
    return sum(count_values(parameter) for parameter in parameters)
