"""What one side of `bench.finetune` measures of its steps."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from typing import Any

SETTINGS: dict[str, Any] = {
    "batch": 8,
    "learning_rate": 2e-4,
    "rank": 8,
    "alpha": 16,
    "max_length": 1024,
    "seed": 42,
}
"""The same for every side; all else is the side's default."""


@dataclass
class Clock:
    """Real (unpadded) tokens, wall and CPU seconds of the steps after the first; and when the first was done."""

    began: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    steps: int = 0
    first: float = 0.0
    begun_at: float = 0.0
    """When the first step began, and below, when it was done: seconds of the epoch, as in `time.time`."""
    done_at: float = 0.0

    def step_begins(self) -> None:
        self.begun_at = self.begun_at or time.time()

    def step_ends(self, tokens: int) -> None:
        if self.steps == 0:
            self.first, self.done_at = time.perf_counter() - self.began, time.time()
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        else:
            self.tokens += tokens
        self.steps += 1
        self._ended = time.perf_counter(), time.process_time()

    def figures(self) -> dict[str, float]:
        wall, cpu = self._ended[0] - self._wall, self._ended[1] - self._cpu
        return {
            "tokens_per_second": self.tokens / wall,
            "tokens_per_cpu_second": self.tokens / cpu,
            "step_seconds": wall / (self.steps - 1),
            "seconds_to_first_step": self.first,
            "first_step_from": self.begun_at,
            "first_step_at": self.done_at,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
