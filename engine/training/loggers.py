"""Loggers for other programs: TensorBoard events, a Weights & Biases run and trackers, as the profile sets them.

They receive metrics and evaluations after the journal; none can delay a run for long or end it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from engine.protocol import attempt_fence
from engine.protocol.home import RunDirectory
from engine.protocol.journal import Evaluation, Metrics, Warn
from engine.protocol.messages import Problem, ProblemError
from engine.training import trackers
from engine.training.job import Job

_WANDB_TIMEOUT = 60.0
"""Seconds to wait for Weights & Biases at the start."""


def open_loggers(job: Job) -> None:
    """Open the loggers that the profile sets, on rank 0. Raises ProblemError for a package that is not installed."""
    if not job.ranks.first:
        return
    logging = job.profile.logging
    trackers.check_installed(logging)
    if logging.tensorboard:
        job.reporter.loggers.append(TensorBoard(job.run))
        if job.attempt > 1:
            job.reporter.rewind_loggers(int(job.resumed_from.name.removeprefix("step-")) if job.resumed_from else None)
    for name in logging.trackers:
        job.reporter.loggers.append(
            trackers.Tracker(name, job.run, logging, job.profile.to_dict(), warn=job.reporter.warn)
        )
    if logging.wandb is not None:
        _open_wandb(job)


def _open_wandb(job: Job) -> None:
    if importlib.util.find_spec("wandb") is None:
        raise ProblemError(
            Problem(
                code="package.missing",
                title="logging.wandb needs the package wandb",
                cause="it is not installed",
                hint="pip install wandb, or leave logging.wandb out",
            )
        )
    try:
        job.reporter.loggers.append(WeightsAndBiases(job))
    except Exception as error:  # noqa: BLE001 - training continues whatever fails in that service
        job.reporter.write(
            Warn(
                code="logging.wandb_failed",
                attempt=job.attempt,
                message=f"Weights & Biases gets nothing of this attempt: {error}",
                hint="set logging.wandb.mode to offline, or log in with `wandb login`; the run itself continues",
            )
        )


class TensorBoard:
    def __init__(self, run: RunDirectory) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        run.tensorboard.mkdir(exist_ok=True)
        self._writer = EventFileWriter(str(run.tensorboard), max_queue_size=10_000, flush_secs=10)

    def write(self, entry: Metrics | Evaluation) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        attempt_fence.check()
        values = [
            Summary.Value(tag=name, simple_value=float("nan") if value is None else value)
            for name, value in entry.values.items()
        ]
        self._writer.add_event(Event(wall_time=entry.time, step=entry.step, summary=Summary(value=values)))

    def rewind(self, step: int) -> None:
        """TensorBoard drops what earlier files have of the steps after `step`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One Weights & Biases run per run: a later attempt continues it. Its x axis is the run's step, which a resume may
    decrease."""

    def __init__(self, job: Job) -> None:
        import wandb

        options = job.profile.logging.wandb
        assert options is not None
        settings = wandb.Settings(silent=True, console="off", init_timeout=_WANDB_TIMEOUT)
        self._run: Any = wandb.init(
            project=options.project,
            name=options.name or job.run.id,
            id=job.run.id,
            resume="allow",
            mode=options.mode,
            dir=job.run.path,
            config=job.profile.to_dict(),
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, entry: Metrics | Evaluation) -> None:
        self._run.log({"step": entry.step, **entry.values})

    def rewind(self, step: int) -> None:
        """Nothing: its x axis may go back."""

    def close(self) -> None:
        self._run.finish()
