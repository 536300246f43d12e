"""NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the embeddings during training.

The noise of a row of `L` tokens and `d` dimensions is at most alpha / √(L·d). transformers uses the width of the batch,
including padding, for `L`; concatenated rows would get far too little noise. Here each of them gets the noise of its
own length, and padded rows get the same as with transformers.
"""

from __future__ import annotations

from typing import Any

from engine.models.segments import Segments


def install(model: Any, alpha: float, segments: Segments) -> None:
    """Add noise to the output of `model`'s input embeddings in training mode. Does nothing for an `alpha` of 0."""
    if alpha == 0:
        return

    def add_noise(module: Any, _: Any, output: Any) -> Any:
        return output + noise(output, alpha, segments.lengths) if module.training else output

    model.get_input_embeddings().register_forward_hook(add_noise)


def noise(like: Any, alpha: float, lengths: Any) -> Any:
    """Noise of the shape of `like`: [rows, tokens, dimensions], or [1, tokens, dimensions] for concatenated rows of
    `lengths`."""
    import torch

    sizes = torch.tensor(lengths or [like.shape[1]], device=like.device)
    # With the size of the result, a card need not be waited for.
    bounds = (alpha / (sizes * like.shape[2]).sqrt()).repeat_interleave(sizes, output_size=like.shape[1])
    return torch.empty_like(like).uniform_(-1, 1) * bounds[None, :, None].to(like.dtype)
