"""NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the embeddings while training.

The noise of a row of `L` tokens and `d` dimensions is at most alpha / √(L·d). transformers takes for `L` what the batch is wide,
padding and all; rows that lie end to end would so get far too little. Here each of those has the noise of its own length, and
padded rows what transformers gives them.
"""

from __future__ import annotations

from typing import Any

from engine.models.segments import Segments


def install(model: Any, alpha: float, segments: Segments) -> None:
    """Add the noise to what `model`'s input embeddings give in training mode. Nothing for an `alpha` of 0."""
    if alpha == 0:
        return

    def disturb(module: Any, _: Any, output: Any) -> Any:
        return output + noise(output, alpha, segments.lengths) if module.training else output

    model.get_input_embeddings().register_forward_hook(disturb)


def noise(like: Any, alpha: float, lengths: Any) -> Any:
    """Of the shape of `like`, [rows, tokens, dimensions], or [1, tokens, dimensions] of rows of `lengths` end to end."""
    import torch

    sizes = torch.tensor(lengths or [like.shape[1]], device=like.device)
    bounds = (alpha / (sizes * like.shape[2]).sqrt()).repeat_interleave(sizes)
    return torch.empty_like(like).uniform_(-1, 1) * bounds[None, :, None].to(like.dtype)
