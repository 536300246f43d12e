"""A trace of some steps of a live run, by torch.profiler: where the time of their operations goes.

Rank 0 records its own steps, from one boundary to another, into `traces/` in the run's directory: a trace that
chrome://tracing and Perfetto open, and a table of the operations that took most.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.protocol import attempt_fence
from engine.protocol.home import make_private, write_private
from engine.protocol.messages import Problem

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

MOST_STEPS = 100
TOP = 40
"""Operations in the table."""


class StepTrace:
    """At most one trace at a time."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._profiler: Any = None
        self._first = self._left = 0

    def start(self, steps: int) -> Problem | None:
        """Record the next `steps` steps; returns the reason for refusing, or None."""
        if not 1 <= steps <= MOST_STEPS:
            return Problem(code="request.invalid", title=f"a trace has 1 to {MOST_STEPS} steps, not {steps}")
        if self._left:
            return Problem(code="request.invalid", title=f"a trace of step {self._first} on is being recorded")
        self._first, self._left = self._loop.step, steps
        if self._loop.ranks.first:
            from torch import profiler

            kinds = [each for each in profiler.ProfilerActivity.__members__.values() if each in _supported()]
            made = profiler.profile(activities=kinds, acc_events=True)
            attempt_fence.check()
            try:
                for file in self._files:  # of an attempt that came by this step before
                    file.unlink(missing_ok=True)
                made.start()
            except (OSError, RuntimeError) as error:
                self._left = 0
                return Problem(code="request.invalid", title="a trace cannot be recorded now", cause=str(error))
            self._profiler = made
        return None

    @property
    def _files(self) -> tuple[Path, Path]:
        """The trace, and the table, whose presence says that the trace is complete."""
        name = f"step-{self._first:08d}"
        folder = self._loop.job.run.traces
        return folder / f"{name}.trace.json", folder / f"{name}.json"

    def end_step(self) -> None:
        """Count a step; after the last one, write the trace."""
        if not self._left:
            return
        self._left -= 1
        if not self._left or self._loop.step >= self._loop.max_steps:
            self._write()

    def close(self) -> None:
        """Write what there is of a trace when the loop ends before its last step, or is to be built again. A profiler
        that is left running would keep every operation of the process, and refuse another one."""
        if self._left:
            self._write()

    def _write(self) -> None:
        steps, self._left = self._loop.step - self._first, 0
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        trace, table = self._files
        attempt_fence.check()
        try:
            profiler.stop()
            make_private(trace.parent)
            profiler.export_chrome_trace(str(trace))
            found = {"step": self._first, "steps": steps, "operations": list_operations(profiler.key_averages())}
            write_private(table, json.dumps(found, indent=1).encode())
        except (OSError, RuntimeError, ValueError, AssertionError, MemoryError) as error:
            with suppress(OSError):  # whoever waits for the table is told; without the trace, there may be room for it
                trace.unlink(missing_ok=True)
                failed = {"step": self._first, "steps": steps, "operations": [], "failed": str(error)}
                write_private(table, json.dumps(failed).encode())
            self._loop.reporter.warn(
                code="file.unwritable",
                step=self._loop.step,
                message=f"the trace of {steps} steps could not be written: {error}",
                hint="free disk space, and ask for it again; the run goes on",
            )


def list_operations(averages: Any) -> list[dict[str, Any]]:
    """The operations that took most time of their own: on the device if any did, else on the CPU."""
    rows = [
        {
            "name": each.key,
            "calls": each.count,
            "cpu_seconds": each.self_cpu_time_total / 1e6,
            "device_seconds": each.self_device_time_total / 1e6,
        }
        for each in averages
    ]
    by = "device_seconds" if any(row["device_seconds"] for row in rows) else "cpu_seconds"
    whole = sum(row[by] for row in rows) or 1.0
    rows.sort(key=lambda row: -row[by])
    return [row | {"share": row[by] / whole} for row in rows[:TOP]]


def _supported() -> set[Any]:
    from torch import profiler

    return set(profiler.supported_activities())
