"""Benchmarks while a run trains (`evaluation.benchmarks.every_steps`), on the model as it is in memory.

Rank 0 measures, and the other ranks wait. The numbers are those of `cockpit eval --benchmark` on the checkpoint of the
step. What cannot be measured, such as rows that would have to be fetched, or for want of memory, is said once and does
not end the run.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from engine.models import accelerator
from engine.protocol.messages import ProblemError
from engine.protocol.text import first_line
from engine.training import resume

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

_CONTEXT = 2048
"""Longest text of a model that does not say how much it can read."""
_EVERY = 2.0
"""Seconds between two reports of progress."""
_ALIVE = 60.0
"""Seconds between two signs of life to the waiting ranks: a benchmark may take longer than they wait for one."""


class StepBenchmarks:
    """Every rank calls every method at the same step."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._options = loop.job.profile.evaluation.benchmarks
        self._gave_up = False
        self._reported = self._alive = 0.0

    def is_due(self) -> bool:
        """Whether the present step ends with benchmarks."""
        every = self._options.every_steps if self._options else None
        return every is not None and self._loop.step > 0 and self._loop.step % every == 0 and not self._gave_up

    def measure(self) -> dict[str, float]:
        """The metrics by journal names, on every rank. The model is in evaluation mode, without gradients."""
        if not self.is_due():
            return {}
        ranks = self._loop.job.ranks
        values: dict[str, float] | str | None = None
        if self._loop.strategy.sharded:
            values = "each rank has only a share of the weights, and a benchmark is measured by one rank"
        else:
            self._alive = time.monotonic()
            values = ranks.broadcast(self._measure() if ranks.first else None)
            while values is None:
                values = ranks.broadcast(None)
        if isinstance(values, str):
            self._gave_up = True
            self._loop.reporter.warn(
                code="evaluation.benchmark_failed",
                step=self._loop.step,
                message=f"benchmarks are not measured during training: {values}",
                hint="the run goes on; they are measured on its best checkpoint at the end, if that is possible",
            )
            return {}
        return values

    def _measure(self) -> dict[str, float] | str:
        """The metrics, or why there are none."""
        from engine.evaluation import benchmarks

        assert self._options is not None
        job = self._loop.job
        limits = self._loop.model.config.get_text_config()
        context = getattr(limits, "max_position_embeddings", None) or _CONTEXT
        loaded = SimpleNamespace(model=self._loop.model, tokenizer=job.tokenizer, context=min(context, _CONTEXT))
        request = benchmarks.make_request(self._options, job.profile.directory)
        state = resume.get_random_state()  # the harness seeds all generators
        try:
            benchmarks.check_request(request)
            return benchmarks.measure_model(request, loaded, self._report)
        except (ProblemError, ValueError, OSError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - the other ranks wait, and a benchmark's own code may raise anything
            return f"{type(error).__name__}: {first_line(error)}"
        finally:
            resume.set_random_state(state)
            accelerator.release()

    def _report(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._alive > _ALIVE:
            self._alive = now
            self._loop.job.ranks.broadcast(None)
        if now - self._reported > _EVERY:
            self._reported = now
            self._loop.reporter.set_phase("evaluating", f"benchmarks: {stage}", done, total)
