"""Creates the optimiser that a profile names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from engine.options.training import TrainingOptions
from engine.protocol.messages import Problem, ProblemError

GPU_ONLY = frozenset({"adamw_8bit", "paged_adamw", "paged_adamw_8bit"})
_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Patterns of the names of weights without weight decay, as in transformers."""


def check_optimizer(name: str, device_kind: str) -> None:
    """Raises ProblemError for an optimiser that does not work on this device.

    On a CPU, bitsandbytes' paged optimisers silently become unpaged, and its 8-bit ones fail at the first step.
    """
    if name in GPU_ONLY and device_kind == "cpu":
        raise ProblemError(
            Problem(
                code="device.unsupported",
                title=f"training.optimizer {name} needs a GPU",
                cause="this job runs on the CPU",
                hint="set training.optimizer to adamw, or to adafactor to save memory",
            )
        )


def make_optimizer(settings: TrainingOptions, model: Any) -> Any:
    """The optimiser of `model`'s trained weights, in two groups: with and without weight decay (four for muon)."""
    import torch

    rate, decayed = settings.learning_rate, find_decayed_names(model)
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(_make_groups(model, decayed, settings.weight_decay), lr=rate, fused=True)
        case "adam":
            from engine.training.muon import group_weights

            return torch.optim.Adam(group_weights(model, decayed, settings.weight_decay), lr=rate)
        case "sgd":
            return torch.optim.SGD(_make_groups(model, decayed, settings.weight_decay), lr=rate)
        case "adafactor":
            from transformers.optimization import Adafactor

            groups = _make_groups(model, decayed, settings.weight_decay)
            return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
        case "muon":
            from engine.training.muon import MuonAdamW, group_weights

            return MuonAdamW(group_weights(model, decayed, settings.weight_decay), rate)
        case "adamw_8bit" | "paged_adamw" | "paged_adamw_8bit":
            return _make_bitsandbytes(
                settings.optimizer, _make_groups(model, decayed, settings.weight_decay), rate, model
            )
    raise AssertionError(settings.optimizer)


def find_decayed_names(model: Any) -> Collection[str]:
    """Names of the weights with weight decay: all but biases and norms."""
    from torch.nn import LayerNorm
    from transformers.trainer_pt_utils import get_parameter_names

    names: list[str] = get_parameter_names(model, [LayerNorm], _NO_DECAY)
    return set(names)


def _make_groups(model: Any, decayed: Collection[str], weight_decay: float) -> list[dict[str, Any]]:
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return [
        {"params": [weight for name, weight in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [weight for name, weight in trained if name not in decayed], "weight_decay": 0.0},
    ]


def _make_bitsandbytes(name: str, groups: list[dict[str, Any]], rate: float, model: Any) -> Any:
    """AdamW with its state in 8 bits, in pages that move to host memory when device memory is short, or both."""
    from bitsandbytes.optim import AdamW, GlobalOptimManager
    from torch.nn import Embedding

    from engine.training.paged_adamw import PagedAdamW, forget_overrides

    forget_overrides()
    if name.endswith("8bit"):
        manager = GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, Embedding):  # 8-bit state is unstable for their sparse gradients
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    bits = 8 if name.endswith("8bit") else 32
    settings = {"lr": rate, "betas": (0.9, 0.999), "eps": 1e-8, "optim_bits": bits}
    return PagedAdamW(groups, is_paged=True, **settings) if name.startswith("paged") else AdamW(groups, **settings)


def reset(optimizer: Any, before: dict[str, Any]) -> None:
    """Give the optimiser the state that it had before its first step: `before`, which is its `state_dict` then."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if hasattr(inner, "reset"):
        inner.reset()
    else:
        optimizer.load_state_dict(before)
