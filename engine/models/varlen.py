"""Attention over rows of several lengths in one call: torch's variable-length flash attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WIDEST = 256
"""The widest head that flash attention computes."""
_OWN = ("softcap", "s_aux", "position_bias")
"""Arguments of a model's attention that the kernel does not know."""


@dataclass(frozen=True)
class Boundaries:
    """Where the rows of a sequence begin and end: `starts` is int32 [rows + 1] on the device."""

    starts: Any
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: Any) -> Boundaries:
        import torch

        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        if device.type == "cuda":  # from pinned memory, so that the copy does not wait for the device
            starts = starts.pin_memory()
        return cls(starts.to(device, non_blocking=True), max(lengths))

    def flash_arguments(self) -> dict[str, Any]:
        """The arguments of transformers' flash attention for joined rows."""
        return {
            "cu_seq_lens_q": self.starts,
            "cu_seq_lens_k": self.starts,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
        }


class Varlen:
    """`torch.nn.attention.varlen.varlen_attn` on the layout of transformers."""

    def takes(self, module: Any, query: Any, value: Any, arguments: dict[str, Any]) -> bool:
        """Whether the kernel computes this call. It knows neither dropout nor what is particular to some models."""
        return (
            not (arguments.get("dropout") and module.training)
            and all(arguments.get(name) is None for name in _OWN)
            and query.shape[-1] == value.shape[-1] <= _WIDEST
        )

    def attend(
        self, query: Any, key: Any, value: Any, boundaries: Boundaries, window: int | None, scale: float | None
    ) -> Any:
        """query [1, heads, tokens, width], key and value with as many heads or fewer; returns [1, tokens, heads,
        width]. `window` is the number of tokens that a token sees, itself included; None for all before it."""
        import torch

        if query.dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        found = varlen_attention(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            boundaries,
            left=-1 if window is None else window - 1,
            scale=scale,
        )
        return found[None]


def varlen_attention(
    query: Any, key: Any, value: Any, boundaries: Boundaries, *, left: int, scale: float | None
) -> Any:
    """Causal attention within each row: query [tokens, heads, width], key and value [tokens, key heads, width]; returns
    [tokens, heads, width]. `left` is how many tokens before itself a token sees; -1 for all."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        query,
        key,
        value,
        boundaries.starts,
        boundaries.starts,
        boundaries.longest,
        boundaries.longest,
        scale=scale,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
