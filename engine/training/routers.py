"""Measures how evenly the routers of a mixture of experts distribute tokens, and computes the load-balancing loss.

Hooks on the routers count on the device how many tokens each expert gets in training passes. The counts are copied to
the host only when metrics are reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.protocol.messages import Problem, ProblemError
from engine.training.ranks import Ranks


class Routers:
    """The routers of `model`; none if it has no experts, or if transformers does not say which modules are routers.

    `coefficient` is `training.router_aux_loss`. None: the coefficient in the model's configuration if a router is
    trained, else 0. Raises ProblemError for a coefficient above 0 if the model has no such loss.
    """

    def __init__(self, model: Any, coefficient: float | None) -> None:
        found = list(_find_routers(model))
        self._routers = {router: index for _, router, index in found}
        own = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
        if coefficient and (not self._routers or own is None):
            raise ProblemError(_describe_unsupported(model, bool(self._routers)))
        if coefficient is None:
            names = tuple(
                name.removesuffix(".base_layer") + "." for name, _, _ in found
            )  # an adapter's layer is around it
            trained = any(weight.requires_grad and key.startswith(names) for key, weight in model.named_parameters())
            coefficient = float(own) if trained and own is not None else 0.0
        self.coefficient = coefficient
        self._watching = False
        self._logits: list[tuple[Any, Any]] = []
        """Logits of the current pass, with the chosen experts, in the order of layers."""
        self._counts: dict[int, Any] = {}
        """Tokens of each expert since the last report, by the number of the router."""
        for number, (router, index) in enumerate(self._routers.items()):
            router.register_forward_hook(self._make_hook(number, index))

    def _make_hook(self, number: int, index: int) -> Any:
        @torch.compiler.disable
        def count(router: Any, _: Any, output: Any) -> None:
            if not self._watching or not torch.is_grad_enabled():
                return
            logits = output[index] if isinstance(output, (tuple, list)) else output
            chosen = _find_chosen(router, output, logits)
            found = _count_tokens(chosen, logits.shape[-1])
            before = self._counts.get(number)
            self._counts[number] = found if before is None else before + found
            if self.coefficient:
                self._logits.append((logits, found))

        return count

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Context of the forward pass of one micro-batch. Layers that are recomputed in the backward pass are not
        counted again."""
        self._watching = bool(self._routers)
        self._logits.clear()
        try:
            yield
        finally:
            self._watching = False

    def auxiliary_loss(self, share: float) -> Any:
        """The auxiliary loss of the last watched pass, times its `share` of the global batch; 0 with a coefficient of
        0. It is the loss of Switch Transformer (Fedus et al. 2021, arXiv:2101.03961), computed over all layers
        together, as in transformers."""
        if not self._logits:
            return 0.0
        rows = sum(math.prod(logits.shape[:-1]) for logits, _ in self._logits)
        chosen: Any = sum(counts for _, counts in self._logits)
        weights: Any = sum(
            logits.float().softmax(-1).reshape(-1, logits.shape[-1]).sum(0) for logits, _ in self._logits
        )
        experts = len(chosen)
        self._logits.clear()
        return self.coefficient * share * experts * (chosen / rows * (weights / rows)).sum()

    def report(self, ranks: Ranks) -> dict[str, float | None]:
        """Metrics of the balance over all ranks since the last report, as means over the layers; resets the counts.

        `expert_load_max` is the share of tokens of the busiest expert, times the number of experts.
        `expert_load_entropy` is the entropy of the experts' shares, divided by that of equal shares. Both are 1 for an
        even load.
        """
        if not self._counts:
            return {}
        layers = [self._counts[number] for number in sorted(self._counts)]
        sizes = [len(layer) for layer in layers]
        whole = torch.tensor(ranks.sum(torch.cat(layers).tolist()), dtype=torch.float64).split(sizes)
        self._counts.clear()
        shares = [layer / layer.sum().clamp(min=1) for layer in whole]
        entropies = [float(torch.special.entr(each).sum()) / math.log(max(2, len(each))) for each in shares]
        return {
            "train/expert_load_max": sum(float(each.max()) * len(each) for each in shares) / len(shares),
            "train/expert_load_entropy": sum(entropies) / len(shares),
        }

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint; they stay on the device."""
        return {str(number): counts.clone() for number, counts in self._counts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts of a checkpoint."""
        devices = [next(router.parameters()).device for router in self._routers]
        self._counts = {int(number): counts.to(devices[int(number)]) for number, counts in state.items()}


def _find_routers(model: Any) -> Iterator[tuple[str, Any, int]]:
    """Names and routers in the order of layers, each with the index of its logits among its outputs. Routers are the
    modules whose outputs transformers records as `router_logits`."""
    recorders = [
        recorder
        for module in model.modules()
        if (recorder := (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits")) is not None
    ]
    places = {
        getattr(recorder, "target_class", recorder): getattr(recorder, "index", 0)
        for recorder in recorders
        if isinstance(getattr(recorder, "target_class", recorder), type)
    }
    for name, module in model.named_modules():
        for kind, index in places.items():
            if isinstance(module, kind):
                yield name, module, index
                break


def _find_chosen(router: Any, output: Any, logits: Any) -> Any:
    """The numbers of the experts that each token goes to."""
    for each in output if isinstance(output, (tuple, list)) else ():
        if isinstance(each, torch.Tensor) and not each.is_floating_point() and each.dim() > 1:
            return each
    return logits.topk(min(router.top_k, logits.shape[-1]), dim=-1).indices


def _count_tokens(chosen: Any, experts: int) -> Any:
    flat = chosen.reshape(-1).long()
    return torch.zeros(experts, dtype=torch.int32, device=flat.device).scatter_add_(
        0, flat, torch.ones_like(flat, dtype=torch.int32)
    )


def _describe_unsupported(model: Any, routed: bool) -> Problem:
    family = model.config.get_text_config().model_type
    return Problem(
        code="training.no_aux_loss",
        title=f"training.router_aux_loss does not go with {family}",
        cause="its routers are balanced in another way: its configuration has no router_aux_loss_coef"
        if routed
        else "it is no mixture of experts, or one whose router's logits transformers does not record",
        hint="leave training.router_aux_loss out, or set it to 0",
    )
