"""Next-token cross entropy, computed at trained positions only, and of long sequences in chunks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from engine.models.segments import Segments

LARGEST = 2**26
"""Logits that are in memory at a time: 128 MiB in 16 bits, and twice 256 MiB for their float32 values and gradients."""

Compute = Callable[[Any, Any], Sequence[Any]]
"""(logits [positions, vocabulary], targets [positions]) -> values of each position, as tensors [positions]."""


class PickedHead:
    """Runs a causal language model so that its output layer sees only the picked positions.

    The output layer is a fifth of a small model's arithmetic and most of its activations' memory, and most positions of
    a prompt with a reply are not trained. A hook on the output layer works for every architecture, also under DDP and
    PEFT. With `early` false the layer computes all positions, as in the library, and they are picked after it.

    More than `LARGEST` logits are never in memory: what is computed from them is computed in chunks of positions, and
    once more in the backward pass. The library's own cross entropy of 8,192 positions over 128,256 tokens takes 11.7
    GiB; this takes about 1.
    """

    def __init__(
        self, model: Any, segments: Segments, early: bool = True, autocast: Callable[[], Any] = nullcontext
    ) -> None:
        """`autocast` makes the context that the model's own `forward` enters, in which the output layer computes
        chunks."""
        self._picked: Any = None
        self._tokens = 0
        self._caught: list[Any] | None = None
        """Receives the output layer's inputs instead of it, when it is to be applied in chunks."""
        self._finish: Callable[[Any], Any] | None = None
        self._finish_known = False
        self.segments, self._autocast = segments, autocast
        self._head = model.get_output_embeddings() if early else None
        if self._head is not None:
            self._head.register_forward_pre_hook(self._pick)

    def _pick(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._picked is None:
            return None
        selected = self._select(arguments[0])
        if self._caught is not None:
            self._caught.append(selected)
            selected = selected[:0]
        return (selected, *arguments[1:])

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

    def compute(self, model: Any, inputs: dict[str, Any], compute: Compute) -> list[Any]:
        """What `compute` makes of the logits, [picked positions] each."""
        import torch

        targets = inputs["targets"]
        if not self._is_large(model, inputs):
            return list(compute(self.logits(model, inputs), targets))
        self._caught = []
        try:
            self.logits(model, inputs)
            (hidden,) = self._caught
        finally:
            self._caught = None
        rows = max(1, LARGEST // self._vocabulary)
        piece = partial(self._compute_piece, compute)
        if torch.is_grad_enabled() and hidden.requires_grad:
            from torch.utils.checkpoint import checkpoint

            piece = partial(checkpoint, piece, use_reentrant=False, preserve_rng_state=False)
        parts = [piece(some, part) for some, part in zip(hidden.split(rows), targets.split(rows), strict=True)]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def _compute_piece(self, compute: Compute, hidden: Any, targets: Any) -> Sequence[Any]:
        assert self._head is not None and self._finish is not None
        with self._autocast():
            logits = self._head(hidden)
        return compute(self._finish(logits), targets)

    def _is_large(self, model: Any, inputs: dict[str, Any]) -> bool:
        """Whether these logits have to be computed in chunks, and can be."""
        if self._head is None or len(inputs["picked"]) * self._vocabulary <= LARGEST:
            return False
        if not self._finish_known:
            self.learn_finish(model, inputs["input_ids"][:1, :8])
        return self._finish is not None

    def learn_finish(self, model: Any, ids: Any) -> None:
        """Find out what this model does to the output layer's results, by a forward pass of a few tokens, [1, tokens].
        Where passes need all ranks, they all do this in advance."""
        if self._head is not None:
            self._finish, self._finish_known = self._find_finish(model, ids), True

    @property
    def _vocabulary(self) -> int:
        """The number of logits at a position."""
        assert self._head is not None
        return int(getattr(self._head, "out_features", 0) or self._head.weight.shape[0])

    def _find_finish(self, model: Any, ids: Any) -> Callable[[Any], Any] | None:
        """What this model does to the output layer's results, tried on a few tokens; None when it is something
        unknown."""
        import torch

        outputs: list[Any] = []
        assert self._head is not None
        hook = self._head.register_forward_hook(lambda _, __, output: outputs.append(output))
        before, self.segments.lengths = self.segments.lengths, None
        try:
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits.float()
        finally:
            hook.remove()
            self.segments.lengths = before
        (output,) = outputs
        config = getattr(model, "module", model).config.get_text_config()
        finishes = _list_finishes(config)
        differences = [float((finish(output).float() - logits).norm() / logits.norm()) for finish in finishes]
        # The right one has hardly any; but of small logits a cap leaves almost the same, so the best one is taken.
        best = min(range(len(finishes)), key=differences.__getitem__)
        return finishes[best] if differences[best] < 1e-3 else None


def _list_finishes(config: Any) -> list[Callable[[Any], Any]]:
    """What models of transformers do to the output layer's results, for the values of this configuration."""
    import torch

    finishes: list[Callable[[Any], Any]] = [lambda logits: logits]
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        finishes.append(lambda logits: torch.tanh(logits / cap) * cap)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        finishes.append(lambda logits: logits * scale)
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        finishes.append(lambda logits: logits / divisor)
    if factor := getattr(config, "lm_head_multiplier", None):  # Falcon-H1
        finishes.append(lambda logits: logits * factor)
    return finishes


def token_losses(logits: Any, targets: Any, smoothing: float = 0.0) -> Any:
    """The cross entropy of each position in float32. `smoothing` is the share of each target's probability that is
    spread over the whole vocabulary (Szegedy et al. 2016, arXiv:1512.00567)."""
    from torch.nn import functional

    return functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
