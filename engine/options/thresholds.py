"""What results must reach: `schema_validity >= 0.95`, `eval/loss < 1.2`. Torch-free."""

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
_WRITTEN = re.compile(r"\s*([\w./-]+)\s*(>=|<=|>|<)\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Threshold:
    """`name` is a metric's, with its group (`eval/loss`)."""

    name: str
    comparison: str
    bound: float

    def holds(self, value: float | None) -> bool:
        """A value that is not there or not finite holds nothing."""
        return value is not None and _COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.name.removeprefix('eval/')} {self.comparison} {self.bound:g}"


@dataclass(frozen=True)
class Verdict:
    threshold: Threshold
    value: float | None
    passed: bool

    def __str__(self) -> str:
        reached = "was not measured" if self.value is None else f"is {self.value:.4g}"
        return f"{self.threshold.name.removeprefix('eval/')} {reached}, wanted {self.threshold.comparison} {self.threshold.bound:g}"


def parse(text: str) -> Threshold:
    """A metric without a group is one of held-out rows. Raises ValueError."""
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise ValueError(f"{text!r} is no threshold; write it as: schema_validity >= 0.95")
    name, comparison, bound = written.groups()
    return Threshold(name if "/" in name else f"eval/{name}", comparison, float(bound))


def judge(thresholds: Sequence[str], values: Mapping[str, float | None]) -> list[Verdict]:
    """Each threshold held against `values`, by metric name. Raises ValueError."""
    wanted = [parse(text) for text in thresholds]
    return [Verdict(each, values.get(each.name), each.holds(values.get(each.name))) for each in wanted]
