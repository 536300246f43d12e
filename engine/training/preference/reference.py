"""The reference model of preference methods: the base without its adapter, or a frozen copy where all weights are
trained."""

from __future__ import annotations

from typing import Any

from engine.models.loss import PickedHead
from engine.models.segments import Segments
from engine.training.methods.base import Batch, MethodSetup
from engine.training.preference.replies import ReplyMethod, sum_sequences


class ReferenceMethod(ReplyMethod):
    """A method that compares the trained model with a reference."""

    mergeable = False  # the reference is the base alone, which is not available with a merged adapter

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._reference: Any = None
        method: Any = self.profile.method
        if self.profile.adapter.kind == "none" and method.beta:
            self._reference = _load_copy(setup)
            self._reference_head = PickedHead(self._reference, setup.segments or Segments(), early=self.early)

    @property
    def heads(self) -> list[tuple[PickedHead, Any]]:
        return super().heads + ([(self._reference_head, self._reference)] if self._reference is not None else [])

    def reference_values(self, batch: Batch) -> Any:
        """[labelled tokens]: the reference's log-probabilities. Call this before the trained model's forward pass: a
        backward pass that recomputes activations uses the segments of the latest forward pass."""
        import torch

        with torch.no_grad():
            if self._reference is not None:
                with self.device.autocast():  # as accelerate does in the trained model's forward pass
                    values = self.token_log_probs(self._reference_head, self._reference, batch)
                self.strategy.release(self._reference)
                return values
            with self.model.disable_adapter():
                return self.token_log_probs(self.head, self.model, batch)

    def reference_log_probs(self, batch: Batch) -> Any:
        """[sequences]: the reference's log-probabilities of whole replies."""
        return sum_sequences(self.reference_values(batch), batch["counts"])

    def log_probs(self, model: Any, batch: Batch) -> Any:
        """[sequences]: the trained model's log-probabilities of whole replies."""
        return sum_sequences(self.token_log_probs(self.head, model, batch), batch["counts"])


def _load_copy(setup: MethodSetup) -> Any:
    """Load the base as it was before the first step, also when a run is resumed.

    It stays in its own dtype, and computes as the trained model does: what that has in float32 between its layers, it
    has too.
    """
    job = setup.job
    job.reporter.set_phase("loading", "the reference")
    model = setup.strategy.build(
        lambda device: job.load_base(
            job.prepared["base"],
            job.profile.model,
            device,
            lambda done, total: None,
            unpack=job.profile.training.optimizations and job.device.kind == "cpu",
        ).requires_grad_(False),
        job.device,
        None,
    )
    if setup.segments:
        setup.segments.install(model)
    residual = next(setup.model.parameters()).dtype
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.to(residual))
    return model.requires_grad_(False).eval()
