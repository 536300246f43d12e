"""Thresholds that results must reach, such as `schema_validity >= 0.95` or `eval/loss < 1.2`. Torch-free."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PATTERN = re.compile(r"\s*([\w./-]+)\s*(>=|<=|>|<)\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Threshold:
    """`name` is the metric, with its group (`eval/loss`)."""

    name: str
    comparison: str
    bound: float

    def is_met(self, value: float | None) -> bool:
        """Whether `value` reaches the bound. A missing value, or one that is not finite, does not."""
        return value is not None and _COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.name.removeprefix('eval/')} {self.comparison} {self.bound:g}"


@dataclass(frozen=True)
class Verdict:
    """A threshold, the value that was measured, and whether it was reached."""

    threshold: Threshold
    value: float | None
    passed: bool

    def __str__(self) -> str:
        reached = "was not measured" if self.value is None else f"is {self.value:.4g}"
        return (
            f"{self.threshold.name.removeprefix('eval/')} {reached}, "
            f"wanted {self.threshold.comparison} {self.threshold.bound:g}"
        )


def parse_threshold(text: str) -> Threshold:
    """Parse a threshold. A metric without a group gets the group `eval/`. Raises ValueError."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a threshold; write it as: schema_validity >= 0.95")
    name, comparison, bound = match.groups()
    return Threshold(name if "/" in name else f"eval/{name}", comparison, float(bound))


def check_thresholds(thresholds: Sequence[str], values: Mapping[str, float | None]) -> list[Verdict]:
    """Compare each threshold with `values`, by metric name. Raises ValueError."""
    parsed = [parse_threshold(text) for text in thresholds]
    return [Verdict(each, values.get(each.name), each.is_met(values.get(each.name))) for each in parsed]
