"""The interface of a method to the training loop: its loss, the units of the loss, and the metrics of held-out rows."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from engine.models.loss import PickedHead
from engine.models.segments import Segments
from engine.prep.batching import GlobalBatches
from engine.training.job import Job
from engine.training.memory import MemoryWatch
from engine.training.metrics import StepMetrics
from engine.training.parallel.single import SingleProcess

Row = dict[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class MethodSetup:
    """The arguments of a method's constructor."""

    job: Job
    model: Any
    rows: Any
    """The training set, in the columns of the method's `Options.rows`."""
    held_out: Any
    """The validation set in the same columns; None without one."""
    batches: GlobalBatches
    segments: Segments | None
    """Keeps attention within each of the concatenated rows; None where this model does not support that."""
    metrics: StepMetrics
    memory: MemoryWatch
    strategy: SingleProcess


class Method:
    """A method of training. Subclasses implement `collate`, `units`, `loss` and `measure`."""

    rehearsable = True
    """Whether `loss` changes nothing but gradients, metrics and random generators, so that the preflight may call
    it."""
    records_rows = False
    """Whether `loss` adds the losses of a micro-batch's tokens to `row_losses`."""
    mergeable = True
    """Whether held-out rows may be measured with the adapter merged into the weights (see
    `engine.inference.merged_decode`)."""

    def __init__(self, setup: MethodSetup) -> None:
        self.job, self.model = setup.job, setup.model
        self.ranks, self.profile, self.device = setup.job.ranks, setup.job.profile, setup.job.device
        self.rows, self.held_out = setup.rows, setup.held_out
        self.metrics, self.memory = setup.metrics, setup.memory
        self.strategy = setup.strategy
        self.row_losses: list[tuple[Any, list[int]]] | None = None
        """While a step is computed: for each micro-batch the losses of its trained tokens, and the number of them in
        each part of it; else None."""

    def collate(self, rows: list[Row]) -> Batch:
        """A micro-batch, on the CPU. Its counts `rows` and `tokens` are removed before other methods receive it."""
        raise NotImplementedError

    def begin_global_batch(self, micro_batches: list[Batch], step: int) -> list[Batch]:
        """Called with this rank's micro-batches before the step that follows `step` steps; returns those to compute."""
        return micro_batches

    def units(self, batch: Batch) -> float:
        """The number of units of a micro-batch, which its loss is a sum over: trained tokens, pairs …"""
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch, units: float) -> Any:
        """The micro-batch's share of the loss, a scalar tensor: its sum divided by the `units` of the global batch on
        all ranks."""
        raise NotImplementedError

    def measure(self, batch: Batch) -> dict[str, float]:
        """Metrics of held-out rows, including `loss`, as sums over their units. The model is in evaluation mode,
        without gradients."""
        raise NotImplementedError

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics of held-out rows by name, from the means of the results of `measure`."""
        return means

    @property
    def heads(self) -> list[tuple[PickedHead, Any]]:
        """Output layers that compute picked positions, each with its model."""
        head = getattr(self, "head", None)
        return [(head, self.model)] if head else []

    def longest_batch(self, rows: list[Row]) -> Batch:
        """A micro-batch, without counts, that takes as much memory as any made of these rows."""
        batch = self.collate(rows)
        take_counts(batch)
        return batch

    def expect_plain_batches(self) -> None:
        """Called before the model receives ordinary batches, such as those of generation."""

    def samples(self) -> list[dict[str, Any]]:
        """Held-out replies of the latest evaluation, as fields of `journal.Sample`; called on all ranks after it."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """State of this rank that the next step needs from earlier steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint's `state_dict`."""

    def to_device(self, batch: Batch) -> Batch:
        """The batch, and the batches in it, with their tensors on the run's device."""
        return {name: self._move(value) for name, value in batch.items()}

    def _move(self, value: Any) -> Any:
        # accelerate's send_to_device would look at every number of a list, and at the environment for each tensor.
        if isinstance(value, dict):
            return self.to_device(value)
        # The loader pins what goes to a GPU, so that the copy does not wait for what the device still computes.
        return value.to(self.device.name, non_blocking=True) if hasattr(value, "to") else value


def make_method(setup: MethodSetup) -> Method:
    """The method that the profile names."""
    module, _, name = setup.job.profile.method.method.partition(":")  # type: ignore[attr-defined]
    method: Method = getattr(importlib.import_module(module), name)(setup)
    return method


def take_counts(batch: Batch) -> tuple[int, int]:
    """Remove the counts of rows and tokens from a collated batch, and return them."""
    return batch.pop("rows"), batch.pop("tokens")
