"""An exponential moving average of the trained weights, which a run with `training.ema` evaluates and saves.

A checkpoint's published weights are then the averaged ones, which transformers and peft load. The trained weights are
in `trainer/` (`masters.pt`), and beside them the average in full precision (`FILE`).

torch's `AveragedModel` would copy the whole model, frozen base included; here the trained weights alone are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.training.parallel.sharded_state import like, local

FILE = "ema.pt"


class WeightAverages:
    """Averages, in float32, of all trained weights of `model`, whatever their dtype."""

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.values = {name: weight.detach().float().clone() for name, weight in self._weights.items()}
        """The averages by name, divided among the ranks as the weights are."""

    def update(self, step: int) -> None:
        """Update the averages with the weights after `step` steps. The first steps weigh more than `decay` says: the
        initial weights would otherwise dominate for long."""
        import torch

        keep = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, weight in self._weights.items():
                local(self.values[name]).lerp_(local(weight.detach()).float(), 1 - keep)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Context in which the model's weights are the averages, in the weights' own dtypes."""
        import torch

        trained = {name: local(weight.detach()).clone() for name, weight in self._weights.items()}
        try:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    local(weight.detach()).copy_(local(self.values[name]))
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    local(weight.detach()).copy_(trained[name])

    def load(self, folder: Path, shards: dict[str, Any]) -> None:
        """Load a checkpoint's averages: those of `shards`, else those of its file. Without any (the run had no average
        then), they start as the current weights."""
        import torch

        for name, average in shards.items():
            local(self.values[name]).copy_(local(average))
        if (folder / FILE).exists():
            kept = torch.load(folder / FILE, map_location="cpu", weights_only=True, mmap=True)
            for name, average in self.values.items():
                local(average).copy_(local(like(average, kept[name])))
