"""Keeps each training row's loss, from the losses of tokens that a step computes anyway.

The losses of a step's tokens are copied to the host at once, when the step has read its own loss and so waited for the
device. The sums of rows are made on the host. A disk that is full ends the ledger, with a warning, and not the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from engine.storage.row_losses import RowLossWriter

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop


class RowLedger:
    """The ledger of a rank. `begin`, `expect` and `record` are called by the loop, in this order."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        job = loop.job
        self.enabled = loop.profile.logging.row_losses and loop.method.records_rows and not job.simulated
        self._writer: RowLossWriter | None = None
        self._firsts = _number_parts(loop.method.rows) if self.enabled else None
        """The number of each row's first part, and of the end, where rows have several; else None."""
        self._rows: list[list[int]] = []
        """The rows of the micro-batches of the present step."""

    def begin(self) -> None:
        """Open the file of this attempt; what it has of later steps no longer counts."""
        if not self.enabled:
            return
        job = self._loop.job
        try:
            self._writer = RowLossWriter(job.run.row_losses, job.attempt, job.ranks.rank)
            self._writer.rewind(self._loop.step)
        except OSError as error:
            self._give_up(error)

    def number_batches(self) -> Iterator[list[int]]:
        """The rows of this rank's micro-batches from the loop's present step to the end of its epoch."""
        return iter(self._loop.batches) if self._writer else iter(())

    def expect(self, numbers: Iterator[list[int]], count: int) -> None:
        """The next `count` of these are the micro-batches of the step that begins."""
        self._rows = list(itertools.islice(numbers, count))
        self._loop.method.row_losses = [] if self._writer else None

    def record(self) -> None:
        """Write down the losses of the step's rows. The step has read its loss, so the device is done with them."""
        import numpy
        import torch

        loop = self._loop
        seen, loop.method.row_losses = loop.method.row_losses, None
        if not seen or self._writer is None or loop.memory.error:  # memory was short: the step is computed again
            return
        rows: list[Any] = []
        losses: list[Any] = []
        host = torch.cat([values for values, _ in seen]).float().cpu().split([len(values) for values, _ in seen])
        for numbers, values, (_, counts) in zip(self._rows, host, seen, strict=True):
            counted = numpy.asarray(counts)
            trained = counted > 0
            if not numbers or not trained.any():
                continue
            starts = (numpy.cumsum(counted) - counted)[trained]
            sums = numpy.add.reduceat(values.numpy(), starts)
            rows.append(self._number(numbers)[trained])
            losses.append(sums / counted[trained])
        if not rows:
            return
        try:
            self._writer.add(
                loop.step, loop.step // loop.batches.per_epoch, numpy.concatenate(rows), numpy.concatenate(losses)
            )
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _number(self, rows: list[int]) -> Any:
        """The numbers of all parts of these rows."""
        import numpy

        if self._firsts is None:
            return numpy.asarray(rows)
        return numpy.concatenate([numpy.arange(self._firsts[row], self._firsts[row + 1]) for row in rows])

    def _give_up(self, error: OSError) -> None:
        self.close()
        self._loop.reporter.warn(
            code="training.row_losses",
            step=self._loop.step,
            message=f"the losses of rows are no longer recorded: {error.strerror or error}",
            hint="free some space; the run itself goes on, and a resume records them again",
        )


def _number_parts(rows: Any) -> Any:
    import numpy

    if "seq_lengths" not in rows.column_names:
        return None
    from pyarrow import compute

    counts = compute.list_value_length(rows.data.column("seq_lengths")).to_numpy()
    return numpy.concatenate([[0], numpy.cumsum(counts)])
