"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for all else, as one optimiser.

Muon makes every update of a matrix orthogonal. It is meant for the hidden layers: embeddings, the output layer, and weights of one
dimension take AdamW's steps. Muon's are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one learning rate
serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether Muon has something to make orthogonal: a row or a column alone has no directions to balance."""
    return weight.ndim == 2 and min(weight.shape) > 1


class MuonAdamW(torch.optim.Optimizer):
    """`groups` are parameter groups as AdamW takes them; those marked `matrices` become Muon's. States and groups of both lie in this
    one, so that schedules, checkpoints and clipping see an ordinary optimiser."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        groups = [group for group in groups if group["params"]]
        muon = [group for group in groups if group.get("matrices")]
        others = [group for group in groups if not group.get("matrices")]
        self._inner: list[tuple[bool, torch.optim.Optimizer]] = []
        if muon:
            self._inner.append((True, torch.optim.Muon(muon, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")))
        if others:
            self._inner.append((False, torch.optim.AdamW(others, lr=lr, weight_decay=0.0)))
        super().__init__([group for _, inner in self._inner for group in inner.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for matrices, inner in self._inner:
            # Read anew at every step: loading a checkpoint puts new groups and states in place.
            inner.param_groups = [group for group in self.param_groups if bool(group.get("matrices")) is matrices]
            inner.state = self.state
            inner.step()


def group_weights(model: Any, decayed: Collection[str], weight_decay: float) -> list[dict[str, Any]]:
    """The trained weights of `model` in parameter groups, matrices of the hidden layers apart from all else. `decayed` names those
    that weight decay is for."""
    outside = {
        id(weight)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None
        for weight in layer.parameters()
    }
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            matrices = is_matrix(weight) and id(weight) not in outside and "prompt_encoder" not in name
            key = (matrices, name in decayed)
            decay = weight_decay if name in decayed else 0.0
            group = groups.setdefault(key, {"params": [], "weight_decay": decay, "matrices": matrices})
            group["params"].append(weight)
    return list(groups.values())
