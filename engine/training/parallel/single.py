"""One process: the strategy that the others extend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from engine.training.ranks import Ranks


class SingleProcess:
    """The whole model, its gradients and its optimiser's state in this process."""

    model: Any
    """The model that forward passes go through. Its outputs are float32, whatever dtype it computes in."""
    optimizer: Any

    def __init__(self, accelerator: Any, ranks: Ranks) -> None:
        """`accelerator` is an `accelerate.Accelerator`, which casts the model, scales the loss and steps the
        optimiser."""
        self.accelerator, self.ranks = accelerator, ranks

    def prepare(self, model: Any, make_optimizer: Callable[[Any], Any]) -> None:
        # Never wrapped in DistributedDataParallel: ranks reduce gradients after their vote, see `reduce`.
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(self.model))

    def micro_batch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reduce(self) -> None:
        pass

    def clip(self, max_norm: float) -> Any:
        return self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm or float("inf"))

    def save(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load(self, file: Path) -> None:
        import torch

        self.optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def optimizer_pieces(self, pieces: list[Any]) -> list[Any]:
        """One value per weight, in the optimiser's order, from the rank that holds its state."""
        return pieces
