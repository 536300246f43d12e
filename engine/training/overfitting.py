"""Learning by heart: the loss on held-out rows rises while that on training rows still falls."""

from __future__ import annotations

from dataclasses import dataclass, field

PATIENCE = 2
"""Evaluations in a row that must show it."""


@dataclass
class OverfittingDetector:
    """Told of losses as a run goes on; says once for each such stretch. Its fields are what a resume needs."""

    best: float = float("inf")
    """The lowest loss on held-out rows so far."""
    before: float = float("inf")
    """Mean training loss between the two evaluations before."""
    rising: int = 0
    _sum: float = field(default=0.0, repr=False)
    _steps: int = field(default=0, repr=False)

    def add_training_loss(self, loss: float) -> None:
        """The loss of a training step, or a mean over some."""
        self._sum += loss
        self._steps += 1

    def add_evaluation(self, loss: float) -> str:
        """The loss on held-out rows; returns what is to be said, or nothing."""
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
        return f"the loss on held-out rows has risen to {loss:.4g} from {self.best:.4g} while the training loss fell to {mean:.4g}"
