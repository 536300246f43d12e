"""Next-token cross entropy, computed at trained positions only."""

from __future__ import annotations

from typing import Any

from engine.models.segments import Segments


class PickedHead:
    """Runs a causal language model so that its output layer sees only the picked positions.

    The output layer is a fifth of a small model's arithmetic and most of its activations' memory, and most positions of
    a prompt with a reply are not trained. A hook on the output layer works for every architecture, also under DDP and
    PEFT. With `early` false the layer computes all positions, as in the library, and they are picked after it.
    """

    def __init__(self, model: Any, segments: Segments, early: bool = True) -> None:
        self._picked: Any = None
        self._tokens = 0
        self.segments = segments
        head = model.get_output_embeddings()
        if head is not None and early:
            head.register_forward_pre_hook(self._pick)

    def _pick(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._picked is None:
            return None
        return (self._select(arguments[0]), *arguments[1:])

    def _select(self, values: Any) -> Any:
        """[rows, positions, width] -> [picked positions, width]. Positions before the rows' own tokens are a soft
        prompt."""
        return values[:, -self._tokens :].reshape(-1, values.shape[-1])[self._picked]

    def logits(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The logits [picked positions, vocabulary] of a collated micro-batch."""
        self._picked, self.segments.lengths = inputs["picked"], inputs["lengths"]
        self._tokens = inputs["input_ids"].shape[1]
        try:
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=self.segments.mask(inputs["input_ids"]),
                position_ids=inputs["position_ids"],
                use_cache=False,
            ).logits
            return logits if logits.dim() == 2 else self._select(logits)
        finally:
            self._picked = None


def cross_entropy(logits: Any, targets: Any, smoothing: float = 0.0) -> Any:
    """The sum over positions, in float32; 0 with a gradient of 0 when there are none. `smoothing` is the share of each
    target's probability that is spread over the whole vocabulary (Szegedy et al. 2016, arXiv:1512.00567)."""
    from torch.nn import functional

    return functional.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)
