"""A training session from prepared data to its last checkpoint."""

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
from engine.models import base, devices
from engine.models.versions import list_versions
from engine.options import thresholds
from engine.protocol import stages
from engine.protocol.home import RunDirectory, write_private
from engine.protocol.journal import Ledger, Start, Warn
from engine.protocol.messages import Problem, ProblemError
from engine.training import assemble, checkpoints, lineage, memory, performance, ranks, report, resuming, steering
from engine.training import model as models
from engine.training.exceptions import Again, Leave
from engine.training.job import Job
from engine.training.lineage import Lineage
from engine.training.loggers import open_boards
from engine.training.plots import Plots
from engine.training.reporter import Voice
from engine.training.steering import Inbox


def train(
    run: RunDirectory,
    attempt: int,
    profile: Profile,
    directory: Path,
    from_step: int | None,
    voice: Voice,
    inbox: Inbox,
) -> tuple[str, int]:
    """Train to the end, or until told to stop; returns `completed` or `stopped`, and the step. Raises ProblemError and
    whatever the libraries raise. `directory` is what a relative `checkpoint.output` is meant from."""
    started = time.time()
    way = lineage.trace(run)
    resumed = _checkpoint_to_resume(run, way, from_step)
    live, skipped = profile, set[int]()
    later = way.changes if from_step is None else []
    if resumed:
        live, skipped = steering.replay(resumed / checkpoints.TRAINER / steering.FILE, profile, later)
    output = Path(directory, live.checkpoint.output).expanduser() if live.checkpoint.output else None
    if output:
        checkpoints.check_output(output)
    job = _set_up(run, attempt, profile, live, voice, inbox)
    job.skipped |= skipped
    job.replayed = {entry.name: entry.new for entry in later}
    job.checkpoints = {step: metrics for step, metrics in checkpoints.known(run).items() if step in way.steps}
    if from_step is not None:
        newest = way.newest(run.checkpoint_steps())
        voice.tell(Ledger(attempt=attempt, step=from_step, name=lineage.REWOUND, old=newest, new=from_step))
    open_boards(job)
    try:
        trainer = _train_until_done(job, resumed)
    finally:
        job.hot.end(voice.link, inbox.step)
    step = trainer.state.global_step
    if job.ranks.first:
        _finish(job, trainer.model, trainer, step, output, time.time() - started)
    job.ranks.broadcast(None)  # nobody leaves before the last checkpoint is safe
    return trainer.outcome, step


def _checkpoint_to_resume(run: RunDirectory, way: Lineage, from_step: int | None) -> Path | None:
    """The newest complete checkpoint on the run's way, or that of `from_step`; None for a run that has none."""
    steps = run.checkpoint_steps()
    if from_step is not None and from_step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise ProblemError(Problem(title=f"There is no checkpoint of step {from_step}", hint=f"kept are: {kept}"))
    step = way.newest(steps) if from_step is None else from_step
    return run.checkpoint(step) if step is not None else None


def _train_until_done(job: Job, resumed: Path | None) -> Any:
    """The trainer after its last step. Trouble may ask for a new start from a checkpoint, in this process."""
    results: dict[int, dict[str, float]] = {}
    again: Again | None = None
    while True:
        ended = _train_once(job, resumed, results, again)
        if not isinstance(ended, Again):
            return ended
        again = ended
        memory.release()
        job.profile = again.profile
        resumed = job.run.checkpoint(again.step) if again.step is not None else None
        results = {step: values for step, values in results.items() if step <= (again.step or 0)}


def _train_once(job: Job, resumed: Path | None, results: dict[int, dict[str, float]], again: Again | None) -> Any:
    """The trainer after its last step, or the Again that ended it early (a new one: the raised one holds on to all its frames)."""
    trainer = assemble.trainer(job, models.build(job, resumed))
    trainer.results = results
    step = int(resumed.name.removeprefix("step-")) if resumed else 0
    job.saved_step = step if resumed else -1
    trainer.greet = lambda drift: _say_start(job, trainer, step, drift, warn=again is None)
    if step >= trainer.args.max_steps:
        trainer.state.global_step = step
        _say_start(job, trainer, step, "", warn=False)
        return trainer
    try:
        trainer.train(resume_from_checkpoint=str(resumed / checkpoints.TRAINER) if resumed else None)
    except Leave:
        pass
    except Again as raised:
        return Again(raised.profile, raised.step)
    return trainer


def _set_up(run: RunDirectory, attempt: int, submitted: Profile, live: Profile, voice: Voice, inbox: Inbox) -> Job:
    """Device, ranks, threads, tokenizer: all that is needed before the model."""
    import torch
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    disable_progress_bar()
    _, local, world = ranks.place()
    kind = devices.find_accelerator()
    performance.check(live.training, kind)
    performance.before_model(live.training)
    devices.set_threads(live.training.threads, world)
    device = devices.choose_device(kind, local, live.model.dtype)
    group = replace(ranks.join(kind), waiting=voice.link.set_waiting)
    # A close race between two dtypes must not end differently on two ranks.
    device = replace(device, compute=group.broadcast(device.compute))
    inbox.pids = group.gather(inbox.pids[0])
    prepared = json.loads(run.prepared.read_text())
    if group.first:
        checkpoints.clean(run)
    torch.manual_seed(live.training.seed)
    return Job(
        run=run,
        attempt=attempt,
        submitted=submitted,
        profile=live,
        prepared=prepared,
        ranks=group,
        device=device,
        voice=voice,
        inbox=inbox,
        plots=Plots(run, group.first and live.logging.plots),
        tokenizer=base.load_tokenizer(
            prepared.get("tokenizer") or prepared["base"], live.model.trust_remote_code, prepared.get("template")
        ),
    )


def _say_start(job: Job, trainer: Any, step: int, drift: str, *, warn: bool) -> None:
    """The facts of this attempt, and what the user should know about the machine. `drift` says how a resume went."""
    model, windows = trainer.model, trainer.windows
    compute = str(job.device.compute).removeprefix("torch.")
    job.voice.tell(
        Start(
            attempt=job.attempt,
            step=step,
            max_steps=trainer.args.max_steps,
            epochs=trainer.args.max_steps / windows.per_epoch,
            steps_per_epoch=windows.per_epoch,
            processes=job.ranks.world,
            global_batch=windows.global_batch,
            parameters=_count(model.parameters()),
            trainable_parameters=_count(p for p in model.parameters() if p.requires_grad),
            rows=len(windows.lengths),
            trained_tokens=job.prepared["trained_tokens"],
            resumed=drift,
            facts={
                "device": job.device.label,
                "dtype": job.profile.model.dtype,
                "quantization": job.profile.model.quantization,
                "compute_dtype": compute,
                "settings": {key: steering.setting(job.profile, key) for key in SETTABLE},
                "thresholds": [
                    (wanted.name, wanted.comparison, wanted.bound)
                    for wanted in map(thresholds.parse_threshold, job.profile.evaluation.thresholds)
                ],
                **list_versions(),
            },
        )
    )
    if warn and drift not in ("", resuming.EXACT):
        job.voice.tell(
            Warn(
                attempt=job.attempt,
                step=step,
                message=f"resumed, but {drift}",
                hint="losses will not be bit for bit those of an uninterrupted run; nothing to do where that was meant",
            )
        )
    if job.device.kind == "cpu" and compute != job.profile.model.dtype:
        job.voice.tell(
            Warn(
                attempt=job.attempt,
                message=f"This CPU computes {job.profile.model.dtype} more slowly than float32, so float32 is used; the "
                f"weights keep their {job.profile.model.dtype} values",
                hint="nothing to do; on a CPU with AMX or AVX512-BF16, or on a GPU, bfloat16 is computed",
            )
        )


def _count(parameters: Any) -> int:
    """Weights, those packed two to a byte counted as what they stand for."""
    return sum(
        math.prod(state.shape) if (state := getattr(p, "quant_state", None)) is not None else p.numel()
        for p in parameters
    )


def _finish(job: Job, model: Any, trainer: Any, step: int, output: Path | None, seconds: float) -> None:
    """Read the last checkpoint back, publish it, report."""
    last = job.run.checkpoint(step)
    if trainer.outcome == "completed":
        with trainer.averaged():
            checkpoints.read_back(last, model, job.profile.model.dtype)
        if output:
            job.voice.phase("saving", str(output))
            checkpoints.publish(last, output)
    job.voice.close_boards()
    if not job.plots.finish(step):
        job.voice.tell(
            Warn(
                attempt=job.attempt,
                step=step,
                message="not all loss curves could be drawn",
                hint=f"the log says why; `cockpit plot {job.run.id}` tries again",
            )
        )
    last_values = trainer.results[max(trainer.results)] if trainer.results else {}
    verdicts = thresholds.check_thresholds(job.profile.evaluation.thresholds, last_values)
    # What the test rows will be measured for is judged there, and once.
    judged = trainer.outcome == "completed" and not stage_plan.has_test_rows(job.profile)
    for verdict in verdicts if judged else ():
        if not verdict.passed:
            job.voice.tell(
                Warn(
                    attempt=job.attempt,
                    step=step,
                    message=f"a threshold is missed: {verdict}",
                    hint="train on, on more or better data, or change evaluation.thresholds",
                )
            )
    report.write(job, trainer.outcome, step, trainer.results, verdicts, seconds)
    if trainer.outcome == "completed":
        write_private(job.run.result(stages.TRAIN), json.dumps({"step": step, "seconds": seconds}).encode())
