"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for other weights, as one
optimiser.

Muon makes every update of a matrix orthogonal. It is meant for hidden layers: AdamW updates embeddings, the output
layer, and one-dimensional weights. Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982),
so that both use the same learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether Muon applies: a single row or column cannot be made orthogonal."""
    return weight.ndim == 2 and min(weight.shape) > 1


class MuonAdamW(torch.optim.Optimizer):
    """`groups` are parameter groups as for AdamW; Muon updates those marked `matrices`. This optimiser holds the states
    and groups of both, so that schedules, checkpoints and clipping see an ordinary optimiser."""

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
            # Set again at every step: loading a checkpoint replaces groups and states.
            inner.param_groups = [group for group in self.param_groups if bool(group.get("matrices")) is matrices]
            inner.state = self.state
            inner.step()


def group_weights(model: Any, decayed: Collection[str], weight_decay: float) -> list[dict[str, Any]]:
    """The trained weights of `model` in parameter groups, with the hidden layers' matrices separate from other weights.
    `decayed` are the names of weights with weight decay."""
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
