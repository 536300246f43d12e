"""An exponential moving average of the trained weights, which is what a run with `training.ema` evaluates and saves.

A checkpoint's own weights are then the averaged ones: they are what plain transformers and peft load. What is trained goes on from lies
in `trainer/` (`masters.pt`), and beside it the average in full precision (`FILE`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "ema.pt"


class WeightAverages:
    """Averages in float32 of all weights of `model` that are trained, whatever dtype those have."""

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().float().clone() for name, weight in self._weights.items()}

    def update(self, step: int) -> None:
        """Count the weights after `step` steps in. The first steps weigh more than `decay` says, or the beginning would stay for long."""
        import torch

        keep = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._averages[name].lerp_(weight.detach().float(), 1 - keep)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Within, the model has the averages for weights, in the weights' own dtypes."""
        trained = {name: weight.data for name, weight in self._weights.items()}
        try:
            for name, weight in self._weights.items():
                # A copy: what reads weights may also lay them out anew.
                weight.data = self._averages[name].to(weight.dtype, copy=True)
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = trained[name]

    def save(self, folder: Path) -> None:
        import torch

        torch.save(self._averages, folder / FILE)

    def load(self, folder: Path) -> None:
        """Go on with a checkpoint's averages. One that has none (the run had no average then) begins with its weights."""
        import torch

        if (folder / FILE).exists():
            kept = torch.load(folder / FILE, map_location="cpu", weights_only=True)
            for name, average in self._averages.items():
                average.copy_(kept[name])
