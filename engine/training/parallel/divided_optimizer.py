"""The optimiser of `launch.strategy: deepspeed`, as the loop and its schedule see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

if TYPE_CHECKING:
    from engine.training.parallel.deepspeed import DeepSpeed


class DividedOptimizer(Optimizer):
    """Its groups are those of the inner optimiser, which computes
    with this rank's shares; its step and its gradients are DeepSpeed's."""

    def __init__(self, strategy: DeepSpeed, inner: Any) -> None:
        self._strategy, self._inner = strategy, inner

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self._inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self._inner.state

    @property
    def defaults(self) -> Any:  # type: ignore[override]
        return self._inner.defaults

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._strategy.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._strategy.drop()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def reset(self) -> None:
        """Forget all steps: an optimiser of the same kind that has made none begins with zeros."""
        for state in self._inner.state.values():
            for value in state.values():
                if hasattr(value, "zero_"):
                    value.zero_()
