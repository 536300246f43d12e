"""What a profile says about evaluation while training."""

from __future__ import annotations

from pydantic import field_validator

from engine.evaluation.thresholds import parse
from engine.protocol.options import Options, option


class EarlyStoppingOptions(Options):
    patience: int = option(3, help="Evaluations in a row without a new best after which the run ends.", ge=1)
    metric: str = option(
        "eval/loss", help="Metric to watch; losses and perplexity down, all else up.", pattern="^eval/."
    )
    min_delta: float = option(0.0, help="What a value must be better by to count.", ge=0)


class EvaluationOptions(Options):
    every_steps: int | None = option(
        None, help="Evaluate every so many steps; none: once an epoch.", unit="steps", ge=1
    )
    task: str | None = option(None, help="Generate replies and score them by this task's metrics.")
    samples: int = option(32, help="Held-out rows to generate replies for.", unit="rows", ge=0)
    probes: list[str] = option([], help="Prompts answered at every evaluation, to see how the replies change.")
    thresholds: list[str] = option(
        [], help="What the last evaluation must reach, such as schema_validity >= 0.95; said in the report."
    )
    at_start: bool = option(True, help="Evaluate before the first step: an out-of-memory shows in the first minute.")
    early_stopping: EarlyStoppingOptions | None = option(
        None, help="End the run, with a checkpoint, when held-out rows say that it no longer gets better."
    )

    @field_validator("thresholds")
    @classmethod
    def _readable(cls, thresholds: list[str]) -> list[str]:
        for text in thresholds:
            parse(text)
        return thresholds
