"""Early stopping: a run ends when its metric no longer improves (`evaluation.early_stopping`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.metrics.registry import direction
from engine.options.evaluation import EarlyStoppingOptions
from engine.protocol.messages import Problem, ProblemError
from engine.tasks.direction import Direction

FILE = "early_stopping.json"


class Patience:
    """Counts scheduled evaluations without a new best metric. Identical on every rank."""

    def __init__(self, options: EarlyStoppingOptions) -> None:
        self._options = options
        self._best: float | None = None
        self._best_step = 0
        self._without_gain = 0

    def update(self, step: int, values: dict[str, Any]) -> str:
        """Count an evaluation; returns the reason to stop, or an empty text. Raises ProblemError for a metric that it
        does not have."""
        options = self._options
        if options.metric not in values:
            raise ProblemError(
                Problem(
                    code="evaluation.no_metric",
                    title=f"evaluation.early_stopping.metric {options.metric} is not evaluated",
                    cause=f"the evaluations of this run have {', '.join(sorted(values))}",
                    hint="name one of these",
                )
            )
        value = values[options.metric]
        if value is not None and self._is_better(value):
            self._best, self._best_step, self._without_gain = value, step, 0
            return ""
        self._without_gain += 1
        if self._without_gain < options.patience:
            return ""
        return (
            f"{options.metric} has not been better than at step {self._best_step} for {self._without_gain} evaluations"
        )

    def _is_better(self, value: float) -> bool:
        if self._best is None:
            return True
        lower = direction(self._options.metric) == Direction.LOWER
        gain = self._best - value if lower else value - self._best
        return gain > self._options.min_delta

    def to_text(self) -> str:
        """The count, for the file `FILE` of a checkpoint."""
        state = {
            "best": self._best,
            "step": self._best_step,
            "stale": self._without_gain,
            "metric": self._options.metric,
        }
        return json.dumps(state)

    def load(self, folder: Path) -> None:
        """Restore the count of a checkpoint; the count starts anew if the checkpoint has none, or counted another
        metric."""
        path = folder / FILE
        state = json.loads(path.read_text()) if path.exists() else {}
        if state.get("metric") == self._options.metric:
            self._best, self._best_step, self._without_gain = state["best"], state["step"], state["stale"]
