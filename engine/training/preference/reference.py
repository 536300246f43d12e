"""The model that a preference method must not leave too far: the base without its adapter, or a frozen copy where all weights are trained."""

from __future__ import annotations

from typing import Any

from engine.models import base
from engine.models.loss import PickedHead
from engine.models.segments import Segments
from engine.training.assemble import Parts
from engine.training.preference.replies import ReplyTrainer, sums


class ReferringTrainer(ReplyTrainer):
    """A trainer that also asks a reference."""

    foldable = False  # the reference of held-out rows is the base alone, which a folded adapter would hide

    def __init__(self, parts: Parts, collate: Any) -> None:
        super().__init__(parts, collate)
        self._reference: Any = None
        method: Any = parts.job.profile.method
        if parts.job.profile.adapter.kind == "none" and method.beta:
            self._reference = _copy(parts)
            self._reference_head = PickedHead(self._reference, parts.segments or Segments(), early=self.early)

    def reference_values(self, inputs: dict[str, Any]) -> Any:
        """[labelled tokens]: of a micro-batch. To be asked before the trained model: recomputed activations belong to the last pass."""
        import torch

        with torch.no_grad():
            if self._reference is not None:
                return self.token_log_probs(self._reference_head, self._reference, inputs)
            with self.model.disable_adapter():
                return self.token_log_probs(self.head, self.model, inputs)

    def reference_log_probs(self, inputs: dict[str, Any]) -> Any:
        """[sequences]: the same of whole replies."""
        return sums(self.reference_values(inputs), inputs["counts"])

    def log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """[sequences]: of the replies of a micro-batch, by the trained model."""
        return sums(self.token_log_probs(self.head, model, inputs), inputs["counts"])


def _copy(parts: Parts) -> Any:
    """The base as it was before the first step, also when a run is resumed."""
    job = parts.job
    job.voice.phase("loading", "the reference")
    model = base.load(
        job.prepared["base"],
        job.profile.model,
        job.device,
        lambda done, total: None,
        unpack=job.profile.training.optimizations,
    )
    if parts.segments:
        parts.segments.install(model)
    return model.to(next(parts.model.parameters()).dtype).requires_grad_(False).eval()
