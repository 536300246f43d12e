"""Attention over rows that are concatenated into one sequence, each of which attends only to itself.

Concatenated rows need no padding, and packed rows need this anyway. Each row (segment) goes through the library's own
scaled dot product with its causal flag, so no mask is built, and no products between rows are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAME = "segments"
"""The name of the attention implementation in transformers' registry."""


class Segments:
    """Lengths in tokens of the rows in the current sequence; None for an ordinary batch, as in generation.

    They are stored here rather than passed through `forward`, since not every architecture passes unknown arguments on.
    A backward pass recomputes the latest forward pass, so the lengths stay until the next one.
    """

    def __init__(self) -> None:
        self.lengths: Sequence[int] | None = None

    def install(self, model: Any) -> None:
        """Make `model` attend in segments whenever lengths are set."""
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        AttentionInterface.register(NAME, self._attend)
        AttentionMaskInterface.register(NAME, self._mask)
        model.set_attn_implementation(NAME)

    def _attend(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **arguments: Any
    ) -> tuple[Any, None]:
        """query, key, value: [1, heads, tokens, width]; returns [1, tokens, heads, width]."""
        import torch
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if self.lengths is None:
            whole: tuple[Any, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
            return whole
        parts = zip(*(tensor.split(self.lengths, dim=2) for tensor in (query, key, value)), strict=True)
        return torch.cat([sdpa_attention_forward(module, *part, None, **arguments)[0] for part in parts], dim=1), None

    def _mask(self, *arguments: Any, **named: Any) -> Any:
        from transformers.masking_utils import sdpa_mask

        return None if self.lengths is not None else sdpa_mask(*arguments, **named)


def can_use_segments(model: Any, attention: str) -> bool:
    """Whether `model` can use segments: its attention is plain causal, and comes through transformers' registry."""
    config = model.config.get_text_config()
    plain = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return (
        attention in ("auto", "sdpa")
        and model._can_set_attn_implementation()
        and model.config._attn_implementation == "sdpa"
        and plain
        and not sliding
        and not getattr(model, "reads_both_ways", False)
    )
