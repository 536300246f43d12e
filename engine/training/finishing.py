"""The end of an attempt: the last checkpoint is verified and published, and the results are written."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from engine.config import stage_plan
from engine.options import thresholds
from engine.protocol import stages
from engine.protocol.codes import Pause
from engine.protocol.home import write_private
from engine.training import checkpoints, memory_report, report
from engine.training.job import Job
from engine.training.loop import TrainingLoop

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def finish(job: Job, loop: TrainingLoop, output: Path | None, seconds: float) -> None:
    """Verify the last checkpoint, publish it, and write the report. Called on every rank; rank 0 does it, and no rank
    returns before. A full disk pauses the run; a run that is stopped meanwhile is `stopped`, and a resume finishes
    it."""
    memory_report.record_peak(job, memory_report.ACTUAL)
    steps: list[Callable[[], None]] = [lambda: _close(job, loop)]
    if loop.outcome == "completed":
        gathered = loop.checkpointer.gather_weights()
        steps = [lambda: _verify(job, loop, gathered), lambda: _publish(job, loop, output), *steps]
    for step in (*steps, lambda: _write_results(job, loop, seconds)):
        while pause := job.ranks.broadcast(_try(job, step)):
            loop.control.pause(pause)
            if loop.control.stopping:
                loop.outcome = "stopped"
                return


def _try(job: Job, step: Callable[[], None]) -> Pause | None:
    """Do a step on rank 0; returns why it has to wait for the disk, or None."""
    if not job.ranks.first:
        return None
    try:
        step()
    except OSError as error:
        if error.errno not in _DISK:
            raise
        return Pause(code="pause.disk_low", reason=f"disk low: the results cannot be written ({error.strerror})")
    return None


def _verify(job: Job, loop: TrainingLoop, gathered: dict[str, Any] | None) -> None:
    with nullcontext() if gathered is not None else loop.averaged_weights():
        checkpoints.read_back(job.run.checkpoint(loop.step), loop.model, job.profile.model.dtype, gathered)


def _publish(job: Job, loop: TrainingLoop, output: Path | None) -> None:
    if output:
        job.reporter.set_phase("saving", str(output))
        checkpoints.publish(job.run.checkpoint(loop.step), output)


def _close(job: Job, loop: TrainingLoop) -> None:
    """Close the loggers and draw the curves."""
    job.reporter.close_loggers()
    if not job.plots.finish(loop.step):
        job.reporter.warn(
            code="plot.failed",
            step=loop.step,
            message="not all loss curves could be drawn",
            hint=f"the log says why; `cockpit plot {job.run.id}` tries again",
        )


def _write_results(job: Job, loop: TrainingLoop, seconds: float) -> None:
    step, results = loop.step, loop.evaluator.results
    last_values = results[max(results)] if results else {}
    verdicts = thresholds.check_thresholds(job.profile.evaluation.thresholds, last_values)
    report.write_report(job, loop.outcome, step, results, verdicts, seconds)
    if loop.outcome == "completed":
        memory_report.learn(job)
        write_private(job.run.result(stages.TRAIN), json.dumps({"step": step, "seconds": seconds}).encode())
    # With an evaluation after training, the thresholds are checked there, once.
    judged = loop.outcome == "completed" and not stage_plan.is_evaluated_after(job.profile)
    for verdict in verdicts if judged else ():
        if not verdict.passed:
            job.reporter.warn(
                code="evaluation.threshold_missed",
                step=step,
                message=f"a threshold was not reached: {verdict}",
                hint="train on, on more or better data, or change evaluation.thresholds",
            )
