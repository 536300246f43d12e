"""Detection of overfitting: the held-out loss rises while the training loss still falls."""

from __future__ import annotations

from dataclasses import dataclass, field

PATIENCE = 2
"""Consecutive evaluations that must show it."""


@dataclass
class OverfittingDetector:
    """Receives the losses of a run; reports each period of overfitting once. Its state starts anew in each attempt."""

    best: float = float("inf")
    """The lowest held-out loss so far."""
    before: float = float("inf")
    """The mean training loss between the two preceding evaluations."""
    rising: int = 0
    _sum: float = field(default=0.0, repr=False)
    _steps: int = field(default=0, repr=False)

    def add_training_loss(self, loss: float) -> None:
        """Add the loss of a training step, or the mean of several."""
        self._sum += loss
        self._steps += 1

    def add_evaluation(self, loss: float) -> str:
        """Add a held-out loss; returns a warning, or an empty text."""
        if not self._steps:
            self.best = min(self.best, loss)
            return ""
        mean, self._sum, self._steps = self._sum / self._steps, 0.0, 0
        fell, self.before = mean < self.before, mean
        if loss < self.best:
            self.best, self.rising = loss, 0
            return ""
        self.rising = self.rising + 1 if fell else 0
        if self.rising != PATIENCE:
            return ""
        rise = f"the loss on held-out rows has risen to {loss:.4g} from {self.best:.4g}"
        return f"{rise} while the training loss fell to {mean:.4g}"
