"""Direct preference optimisation: the losses of trl's DPOTrainer, independent of how a global batch is divided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import logsigmoid, relu

from engine.training.methods.base import Batch, Row
from engine.training.methods.dpo import Options
from engine.training.preference.reference import ReferenceMethod
from engine.training.preference.replies import collate_pairs

Losses = Callable[[Any, Any, Any, Any, Options], Any]
"""`(chosen, rejected, chosen_tokens, rejected_tokens, options)` -> [pairs]. The first two are log-ratios of the trained
model to the reference, the next two numbers of tokens of the replies, each [pairs]."""


def _sigmoid(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    return -logsigmoid(options.beta * (chosen - rejected))


def _hinge(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """SLiC (Zhao et al. 2023, arXiv:2305.10425)."""
    return relu(1 - options.beta * (chosen - rejected))


def _ipo(chosen: Any, rejected: Any, chosen_tokens: Any, rejected_tokens: Any, options: Options) -> Any:
    """Azar et al. 2023, arXiv:2310.12036, equation 17, with log-ratios per token as in its authors' code."""
    return (chosen / chosen_tokens - rejected / rejected_tokens - 1 / (2 * options.beta)) ** 2


def _sigmoid_norm(chosen: Any, rejected: Any, chosen_tokens: Any, rejected_tokens: Any, options: Options) -> Any:
    return -logsigmoid(options.beta * (chosen / chosen_tokens - rejected / rejected_tokens))


def _exo_pair(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """Ji et al. 2024, arXiv:2402.00856, equation 16."""
    epsilon = torch.tensor(options.label_smoothing, device=chosen.device)
    margin = options.beta * (chosen - rejected)
    return torch.sigmoid(margin) * (logsigmoid(margin) - torch.log1p(-epsilon)) + torch.sigmoid(-margin) * (
        logsigmoid(-margin) - torch.log(epsilon)
    )


def _nca_pair(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """Chen et al. 2024, arXiv:2402.05369."""
    good, bad = options.beta * chosen, options.beta * rejected
    return -logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad)


def _robust(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """Chowdhury et al. 2024, arXiv:2403.00409."""
    margin, wrong = options.beta * (chosen - rejected), options.label_smoothing
    return (-(1 - wrong) * logsigmoid(margin) + wrong * logsigmoid(-margin)) / (1 - 2 * wrong)


def _bco_pair(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """Jung et al. 2024, arXiv:2404.04656, in trl's form for pairs."""
    return -logsigmoid(options.beta * chosen) - logsigmoid(-options.beta * rejected)


def _sppo_hard(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """Wu et al. 2024, arXiv:2405.00675, with a probability of 1 for the chosen reply."""
    return (chosen - 0.5 / options.beta) ** 2 + (rejected + 0.5 / options.beta) ** 2


def _apo_zero(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7."""
    return 1 - torch.sigmoid(options.beta * chosen) + torch.sigmoid(options.beta * rejected)


def _apo_down(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8."""
    return torch.sigmoid(options.beta * chosen) + 1 - torch.sigmoid(options.beta * (chosen - rejected))


def _discopop(chosen: Any, rejected: Any, _: Any, __: Any, options: Options) -> Any:
    """Lu et al. 2024, arXiv:2406.08414, equation 5."""
    margin = options.beta * (chosen - rejected)
    mix = torch.sigmoid(margin / options.discopop_tau)
    return -logsigmoid(margin) * (1 - mix) + torch.exp(-margin) * mix


LOSSES: dict[str, Losses] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
}


class DPO(ReferenceMethod):
    """The mean loss of the pairs of the global batch."""

    def collate(self, rows: list[Row]) -> Batch:
        return collate_pairs(rows, self.flat)

    def loss(self, model: Any, batch: Batch, units: float) -> Any:
        sums = self._compute_sums(model, batch)
        for name in ("rewards_chosen", "rewards_rejected", "rewards_accuracy", "rewards_margin"):
            self.metrics.add(f"train/{name}", float(sums[name]), batch["pairs"])
        return sums["loss"] / units

    def measure(self, batch: Batch) -> dict[str, float]:
        return {name: float(value) for name, value in self._compute_sums(self.model, batch).items()}

    def _compute_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Metrics as sums over the pairs of a micro-batch; `loss` has a gradient."""
        options: Options = self.profile.method  # type: ignore[assignment]
        reference = self.reference_log_probs(batch)
        ratios = self.log_probs(model, batch) - reference
        pairs = batch["pairs"]
        chosen, rejected = ratios.split([pairs, pairs])
        chosen_tokens, rejected_tokens = torch.tensor(batch["counts"], device=ratios.device).split([pairs, pairs])
        losses = LOSSES[options.loss_type](chosen, rejected, chosen_tokens, rejected_tokens, options)
        good, bad = options.beta * chosen.detach(), options.beta * rejected.detach()
        return {
            "loss": losses.sum(),
            "rewards_chosen": good.sum(),
            "rewards_rejected": bad.sum(),
            "rewards_accuracy": (good > bad).sum(),
            "rewards_margin": (good - bad).sum(),
        }
