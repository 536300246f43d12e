"""Next-token cross entropy where it is trained, and nowhere else."""

from __future__ import annotations

from typing import Any

from engine.training.segments import Segments


class PickedHead:
    """Runs a causal language model so that its output layer sees the picked positions alone.

    The head is a fifth of a small model's arithmetic and most of its activations' memory, and in a prompt-and-reply row most
    positions are not trained. A hook on the output layer works for every architecture, under DDP and PEFT alike.
    """

    def __init__(self, model: Any, segments: Segments) -> None:
        self._picked: Any = None
        self.segments = segments
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._pick)

    def _pick(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._picked is None:
            return None
        hidden = arguments[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self._picked], *arguments[1:])

    def logits(self, model: Any, inputs: dict[str, Any]) -> Any:
        """[picked positions, vocabulary] of a collated micro-batch."""
        self._picked, self.segments.lengths = inputs["picked"], inputs["lengths"]
        try:
            logits = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
        finally:
            self._picked = None
        return logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])[inputs["picked"]]


def cross_entropy(logits: Any, targets: Any) -> Any:
    """The sum over positions, in float32; 0 with a gradient of 0 when there are none."""
    from torch.nn import functional

    return functional.cross_entropy(logits.float(), targets, reduction="sum")
