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

FILE = "ema.pt"


class WeightAverages:
    """Averages, in float32, of all trained weights of `model`, whatever their dtype."""

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().float().clone() for name, weight in self._weights.items()}

    def update(self, step: int) -> None:
        """Update the averages with the weights after `step` steps. The first steps weigh more than `decay` says: the
        initial weights would otherwise dominate for long."""
        import torch

        keep = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._averages[name].lerp_(weight.detach().float(), 1 - keep)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Context in which the model's weights are the averages, in the weights' own dtypes."""
        trained = {name: weight.data for name, weight in self._weights.items()}
        try:
            for name, weight in self._weights.items():
                # A copy: code that reads the weights may also change their memory layout.
                weight.data = self._averages[name].to(weight.dtype, copy=True)
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = trained[name]

    def state_dict(self) -> dict[str, Any]:
        """The averages, for the file `FILE` of a checkpoint."""
        return self._averages

    def load(self, folder: Path) -> None:
        """Load a checkpoint's averages. Without any (the run had no average then), they start as the current
        weights."""
        import torch

        if (folder / FILE).exists():
            kept = torch.load(folder / FILE, map_location="cpu", weights_only=True, mmap=True)
            for name, average in self._averages.items():
                average.copy_(kept[name])
