"""What a profile says about evaluation while training."""

from __future__ import annotations

from engine.protocol.options import Options, option


class EvaluationOptions(Options):
    every_steps: int | None = option(
        None, help="Evaluate every so many steps; none: once an epoch.", unit="steps", ge=1
    )
    task: str | None = option(None, help="Generate replies and score them by this task's metrics.")
    samples: int = option(32, help="Held-out rows to generate replies for.", unit="rows", ge=0)
    at_start: bool = option(True, help="Evaluate before the first step: an out-of-memory shows in the first minute.")
