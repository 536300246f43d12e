"""The `evaluation` section of a profile: evaluation during training and after it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from engine.options.base import Options, option
from engine.options.data import ServiceOptions
from engine.options.thresholds import parse_threshold


class EarlyStoppingOptions(Options):
    patience: int = option(3, help="Evaluations in a row without a new best after which the run ends.", ge=1)
    metric: str = option("eval/loss", help="Metric to watch, such as eval/loss or eval/triples_f1.", pattern="^eval/.")
    min_delta: float = option(0.0, help="Smallest improvement that counts.", ge=0)


class JudgeOptions(ServiceOptions):
    """An OpenAI-compatible service that rates replies."""

    SECTION: ClassVar[str] = "judge"

    rubric: dict[str, str] = option(
        {
            "opposition": (
                "The standpoints truly contradict one another, and each is put as strongly as "
                "its defenders would put it."
            ),
            "rigour": "Every argument supports its own standpoint; none is false, circular or said twice.",
            "depth": (
                "It goes beyond what comes to mind first, and the counter-questions touch what "
                "the standpoints take for granted."
            ),
        },
        help="What is judged, with 1 to 5 points each: a name, and what deserves five.",
        min_length=1,
    )
    prompt: str | None = option(
        None, help="What the judge is asked, with {question}, {reply}, {reference} and {rubric}; none: by language."
    )

    @field_validator("rubric")
    @classmethod
    def _check_names(cls, rubric: dict[str, str]) -> dict[str, str]:
        for name in rubric:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is not a valid name of a criterion: use only letters, digits and _")
        return rubric


class BenchmarkOptions(Options):
    """Benchmarks of lm-evaluation-harness on which the best checkpoint is measured after training."""

    every_steps: int | None = option(
        None, help="Also measure every so many steps; none: only after training.", unit="steps", ge=1
    )
    names: list[str] = option(help="Their names, such as arc_easy.", min_length=1)
    rows: int | None = option(None, help="Use at most this many rows of each; none: all.", unit="rows", ge=1)
    folder: str | None = option(None, help="A folder with YAML files of further benchmarks.")
    few_shot: int | None = option(None, help="Examples before each question; none: as a benchmark says itself.", ge=0)
    chat_template: bool = option(False, help="Ask the questions in the model's chat template.")


class EvaluationOptions(Options):
    every_steps: int | None = option(
        None, help="Steps between two evaluations; none: one per epoch.", unit="steps", ge=1
    )
    task: str | None = option(None, help="Generate replies and score them by this task's metrics.")
    samples: int = option(32, help="Held-out rows to generate replies for.", unit="rows", ge=0)
    probes: list[str] = option([], help="Prompts answered at every evaluation, to see how the replies change.")
    thresholds: list[str] = option(
        [],
        help="Thresholds that the last evaluation must reach, such as schema_validity >= 0.95; the report lists them.",
    )
    judge: JudgeOptions | None = option(
        None,
        help=(
            "How a service judges replies, when `cockpit eval --judge` or a pipeline asks it to; never while training."
        ),
    )
    drift: bool = option(
        False,
        help="Measure at each evaluation how far the model has moved from its base on 64 neutral prompts and texts: "
        "drift_kl, drift_perplexity, drift_changed, drift_stops, drift_format, drift_language.",
    )
    drift_limit: float | None = option(None, help="Largest drift_kl; none: no limit.", unit="nats per token", gt=0)
    drift_action: Literal["warn", "stop"] = option("warn", help="What happens beyond evaluation.drift_limit.")
    benchmarks: BenchmarkOptions | None = option(
        None, help="Benchmarks on which the best checkpoint is measured after training."
    )
    at_start: bool = option(True, help="Evaluate before the first step: an out-of-memory shows in the first minute.")
    early_stopping: EarlyStoppingOptions | None = option(
        None, help="End the run, with a checkpoint, when the results on held-out rows no longer improve."
    )

    @field_validator("thresholds")
    @classmethod
    def _check_thresholds(cls, thresholds: list[str]) -> list[str]:
        for text in thresholds:
            parse_threshold(text)
        return thresholds
