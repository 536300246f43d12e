"""The sums of a rank since the last report, and the metrics that the ranks report together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.training.ranks import Ranks


@dataclass
class StepMetrics:
    """Sums of one rank over the steps since the last report."""

    loss: float = 0.0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Time spent in steps: evaluations, saves and pauses are not counted."""
    method_sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The method's metrics: name -> (sum, number of summands)."""
    step_start: float = field(default_factory=time.perf_counter)
    """When the current step began, by `perf_counter`."""

    def start_step(self) -> None:
        """Start the clock of the next step."""
        self.step_start = time.perf_counter()

    def end_step(self, loss: float) -> None:
        """Add a finished step and this rank's share of its loss."""
        self.seconds += time.perf_counter() - self.step_start
        self.steps += 1
        self.loss += loss

    def add(self, name: str, total: float, count: float) -> None:
        """Add to the mean of the metric `name`, such as `train/accuracy`. Every rank must add the same names."""
        before = self.method_sums.get(name, (0.0, 0.0))
        self.method_sums[name] = (before[0] + total, before[1] + count)

    def report(self, ranks: Ranks, further: Sequence[float] = ()) -> tuple[dict[str, float | None], list[float]]:
        """The metrics of all ranks by name, and the sums of what is `further` to be summed. Resets all sums."""
        loss, rows, tokens, *noted = ranks.sum(
            [self.loss / self.steps, self.rows, self.tokens, *further, *itertools.chain(*self.method_sums.values())]
        )
        sums, noted = noted[: len(further)], noted[len(further) :]
        values: dict[str, float | None] = {
            "train/loss": loss,
            "train/tokens_per_second": tokens / self.seconds,
            "train/samples_per_second": rows / self.seconds,
            "train/step_seconds": self.seconds / self.steps,
        }
        means = zip(self.method_sums, noted[::2], noted[1::2], strict=True)
        values |= {name: total / count for name, total, count in means if count}
        self.load_state_dict({"noted": {}})
        return values, sums

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        names = ("loss", "steps", "rows", "tokens", "seconds")
        return {name: getattr(self, name) for name in names} | {"noted": dict(self.method_sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums of a checkpoint; missing ones start at zero. The clock of the step starts now."""
        self.loss, self.seconds = state.get("loss", 0.0), state.get("seconds", 0.0)
        self.steps, self.rows, self.tokens = (state.get(name, 0) for name in ("steps", "rows", "tokens"))
        self.method_sums = dict(state["noted"])
        self.start_step()
