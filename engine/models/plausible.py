"""Whether the sizes in a config.json can be those of a model: a library would build whatever it says, for hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LIMITS = {
    "layers": 10_000,
    "n_layer": 10_000,
    "depth": 10_000,
    "block_count": 10_000,
    "heads": 100_000,
    "n_head": 100_000,
    "head_dim": 100_000,
    "head_count": 100_000,
    "head_count_kv": 100_000,
    "experts": 100_000,
    "expert_count": 100_000,
    "hidden_size": 1_000_000,
    "d_model": 1_000_000,
    "n_embd": 1_000_000,
    "dim": 1_000_000,
    "embedding_length": 1_000_000,
    "intermediate_size": 10_000_000,
    "ffn_dim": 10_000_000,
    "d_ff": 10_000_000,
    "n_inner": 10_000_000,
    "feed_forward_length": 10_000_000,
    "vocab_size": 100_000_000,
    "n_positions": 1_000_000_000,
    "n_ctx": 1_000_000_000,
    "position_embeddings": 1_000_000_000,
    "seq_length": 1_000_000_000,
    "context_length": 1_000_000_000,
    "num_labels": 10_000_000,
    "kernel_size": 1_000_000,
    "state_size": 1_000_000,
    "rank": 1_000_000,
    "r": 1_000_000,
}
"""End of a setting's name -> the greatest value that is believed: ten times the largest models, or more."""
_LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "block_count"}
"""Settings that say how many layers there are; other names that end so count some of these, or say from which one."""
_DEPTH = 8


def find_implausible(config: Any, tensors: int = 0, where: str = "config.json") -> list[str]:
    """A sentence for each size that no model has, and for more layers than there are tensors (0: not known)."""
    return [*_find(config, tensors, where, _DEPTH)]


def _find(config: Any, tensors: int, where: str, depth: int) -> Iterator[str]:
    if not isinstance(config, Mapping) or not depth:
        return
    for name, value in config.items():
        limit = next(
            (most for end, most in _LIMITS.items() if str(name) == end or str(name).endswith((f"_{end}", f".{end}"))),
            None,
        )
        if isinstance(value, (int, float)) and not isinstance(value, bool) and limit is not None:
            if tensors and name in _LAYERS:
                limit = min(limit, tensors)
            if value > limit:
                yield f"{where} says {name} {value:.6g}, where this model can have at most {limit:,}"
        elif isinstance(value, Mapping):
            yield from _find(value, 0, where, depth - 1)
