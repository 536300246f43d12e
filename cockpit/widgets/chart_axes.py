"""The axes of a chart: which values are on them, round ticks, and how ticks are written. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import abc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cockpit.state.formatting import format_count, format_duration, format_epochs, format_number

X_AXES = ("step", "tokens", "time", "epoch")
"""What the horizontal axis can show, in the order in which a key goes through them."""
GROWTH = 1.25
LABEL = 6
"""Cells of the longest label of the vertical axis."""
FEW_TICKS = 3
DECADES = 300
"""The powers of ten that a tick may be: beyond, they are not finite."""
LARGEST = 1e300
"""The largest value that an axis shows: beyond, the differences of two are not finite."""
Facts = abc.Mapping[str, Any]
"""A journal entry of the kind `start`."""
_TIMES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Seconds between two ticks of a time; beyond, 1, 2 or 5 times a power of ten of days."""


@dataclass(frozen=True, eq=False)
class Mapping:
    """Steps as another quantity. Between two known steps it is linear, and so it is beyond them."""

    steps: Sequence[float] = (0.0, 1.0)
    values: Sequence[float] = (0.0, 1.0)

    def position(self, step: float) -> float:
        return _interpolate(self.steps, self.values, step)

    def step(self, position: float) -> float:
        """The step at a position: the inverse of `position`."""
        return _interpolate(self.values, self.steps, position)


STEPS = Mapping()


def linear(factor: float) -> Mapping:
    """A quantity that is `factor` times the step."""
    return Mapping((0.0, 1.0), (0.0, factor)) if factor > 0 else STEPS


def elapsed(steps: Sequence[float], moments: Sequence[float]) -> Mapping:
    """Steps as seconds since the first one. Moments that do not ascend (a clock that was set back) are left out."""
    kept: list[tuple[float, float]] = []
    for step, moment in zip(steps, moments, strict=True):
        if not kept or (step > kept[-1][0] and moment > kept[-1][1]):
            kept.append((step, moment))
    if len(kept) < 2:
        return STEPS
    return Mapping([step for step, _ in kept], [moment - kept[0][1] for _, moment in kept])


def _interpolate(places: Sequence[float], values: Sequence[float], at: float) -> float:
    right = min(len(places) - 1, max(1, bisect_left(places, at)))
    left = right - 1
    share = (at - places[left]) / ((places[right] - places[left]) or 1.0)
    return values[left] + share * (values[right] - values[left])


class View(NamedTuple):
    """The range of a plot. With `log`, `low` and `high` are exponents of ten."""

    first: float
    last: float
    low: float
    high: float
    log: bool = False

    def column(self, position: float, dots: int) -> int:
        """The dot column of a position on the horizontal axis: 0 … dots-1 within the range."""
        return round((position - self.first) / ((self.last - self.first) or 1.0) * (dots - 1))

    def position(self, column: float, dots: int) -> float:
        """The position of a dot column: the inverse of `column`."""
        return self.first + column / max(1, dots - 1) * (self.last - self.first)

    def line(self, value: float, dots: int) -> int:
        """The dot row of a value, 0 at the top. Values outside the range are drawn at the edge."""
        scaled = scale(value, self.log)
        if scaled is None or scaled != scaled:
            return dots - 1
        share = (scaled - self.low) / ((self.high - self.low) or 1.0)
        return round((1 - max(0.0, min(1.0, share))) * (dots - 1))


def scale(value: float, log: bool) -> float | None:
    """The position of a value on the axis; None for a value that a log scale cannot show."""
    if not log:
        return value
    return math.log10(value) if value > 0 else None


def extend_edge(edge: float, first: float, last: float, limit: float, least: float = 8) -> float:
    """The right edge after a point at `last`: unchanged while there is room, else the span grows by a quarter, up to
    `limit`."""
    if first < last <= edge:
        return edge
    grown = first + max(least, (last - first) * GROWTH)
    return max(last, min(grown, limit) if limit else grown)


def stable_range(old: tuple[float, float] | None, low: float, high: float) -> tuple[float, float]:
    """The y range for values low…high: the old range while they fit and fill half of it, else their own with a margin
    of a twentieth."""
    if old and old[0] <= low and high <= old[1] and high - low >= 0.5 * (old[1] - old[0]):
        return old
    spare = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (max(0.0, low - spare) if low >= 0 else low - spare), high + spare


def ticks(low: float, high: float, count: int, log: bool = False) -> list[float]:
    """About `count` round values from low to high, in steps of 1, 2 or 5 times a power of ten. With `log`, the range is
    in exponents of ten and the values are not; a range of less than a decade has as many as a linear one."""
    if log:
        return _log_ticks(low, high, count)
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return _multiples(low, high, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999))


def _multiples(low: float, high: float, step: float) -> list[float]:
    start, stop = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(at * step, digits) for at in range(start, stop + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    low, high = max(low, -DECADES), min(high, DECADES)
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < count else (1,)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    found = [value for value in found if low <= math.log10(value) <= high]
    for more in (count, 2 * count):
        if len(found) < FEW_TICKS and high - low <= 1:
            found = ticks(10.0**low, 10.0**high, more)
    return found


def write_ticks(values: Sequence[float]) -> list[str]:
    """The labels of a vertical axis, each of at most six characters and other than its neighbours; what cannot be told
    apart in six characters is left empty after the first."""
    texts = [_shorten(value) for value in values]
    for digits in range(5):
        if len(set(texts)) == len(texts):
            break
        finer = [f"{value:.{digits}f}" for value in values]
        if max(map(len, finer)) <= LABEL:
            texts = finer
    return [text if at == 0 or text != texts[at - 1] else "" for at, text in enumerate(texts)]


def _shorten(value: float) -> str:
    text = format_number(value)
    if len(text) <= LABEL:
        return text
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"[:LABEL]


# ── the horizontal axis ───────────────────────────────────────────────────────────────────────────────────────────


def x_ticks(first: float, last: float, count: int, kind: str = "step") -> list[float]:
    """About `count` round positions: whole steps, round counts of tokens, round times, or epochs."""
    if kind == "time" and last > first:
        rough = (last - first) / count
        return _multiples(first, last, next((each for each in _TIMES if each >= rough), _round_days(rough)))
    found = ticks(first, last, count)
    return [each for each in found if each == int(each)] if kind == "step" else found


def _round_days(seconds: float) -> float:
    days = seconds / 86400
    power = 10.0 ** math.floor(math.log10(days)) if days > 0 else 1.0
    return 86400 * next(factor * power for factor in (1, 2, 5, 10) if factor * power >= days * 0.999)


def write_position(position: float, kind: str = "step") -> str:
    """A position on the horizontal axis: 12,000 · 1.2M · 1:05:00 · 2.5."""
    match kind:
        case "tokens":
            return format_count(position)
        case "time":
            return format_duration(position)
        case "epoch":
            return format_epochs(position)
    return f"{round(position):,}"


def finite_range(values: Iterable[float], log: bool) -> tuple[float, float] | None:
    """The lowest and the highest position on the vertical axis of the values that it can show; None without any."""
    low, high = math.inf, -math.inf
    for value in values:
        scaled = scale(value, log)
        if scaled is not None and abs(scaled) <= LARGEST:
            low, high = min(low, scaled), max(high, scaled)
    return (low, high) if low <= high else None


def run_axes(start: Facts | None, steps: Sequence[int] = (), moments: Sequence[float] = ()) -> dict[str, Mapping]:
    """Kind of horizontal axis -> a run's steps on it, as far as they are known: from the facts of its start (steps and
    trained tokens of an epoch), and from when steps were recorded."""
    found = {}
    per_epoch, tokens = (_number((start or {}).get(name)) for name in ("steps_per_epoch", "trained_tokens"))
    if per_epoch > 0:
        found["epoch"] = linear(1 / per_epoch)
        if tokens > 0:
            found["tokens"] = linear(tokens / per_epoch)
    clock = elapsed(steps, moments)
    return found | ({"time": clock} if clock is not STEPS else {})


def _number(value: object) -> float:
    """A fact of a journal, which may be damaged; 0 for what is no number."""
    return float(value) if isinstance(value, (int, float)) and abs(value) <= LARGEST else 0.0
