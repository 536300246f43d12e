"""Filters of runs: words, and `field:value` terms. Pure.

`state:failed,lost lr:>1e-4 tag:paper -base:qwen poems`: all terms have to hold, one of the values between commas
suffices, `-` or `!` in front turns a term round. A word without a field is looked for in all texts of a run.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from cockpit.language.translate import tr
from engine.protocol.messages import Run
from engine.protocol.text import did_you_mean

TEXTS: dict[str, Callable[[Run], list[str]]] = {
    "id": lambda run: [run.id],
    "name": lambda run: [run.name],
    "state": lambda run: [run.state],
    "base": lambda run: [run.base],
    "method": lambda run: [run.method],
    "adapter": lambda run: [run.adapter],
    "tag": lambda run: run.tags,
    "group": lambda run: [run.group],
    "note": lambda run: [run.note],
    "profile": lambda run: [run.profile],
    "stage": lambda run: [run.stage],
    "host": lambda run: [run.host],
    "code": lambda run: [run.code, run.problem.code if run.problem else ""],
    "pinned": lambda run: ["yes" if run.pinned else "no"],
}
"""Field -> its texts. A value is found in any part of one, whatever the case."""
NUMBERS: dict[str, Callable[[Run], float | None]] = {
    "lr": lambda run: run.learning_rate or run.metrics.get("train/learning_rate"),
    "loss": lambda run: run.metrics.get("train/loss"),
    "eval": lambda run: run.metrics.get("eval/loss"),
    "step": lambda run: run.step,
    "steps": lambda run: run.max_steps or None,
    "epoch": lambda run: run.epoch,
    "attempt": lambda run: run.attempt,
    "priority": lambda run: run.priority if run.position else None,
    "age": lambda run: time.time() - run.created,
}
"""Field -> its number, compared as `>1e-4`; `age` takes units: `<2d`. Metrics with a `/` in their name are fields
too."""
FIELDS = (*TEXTS, *NUMBERS)
_TERM = re.compile(r'(?P<no>[-!]?)(?:(?P<field>[A-Za-z_][\w./@-]*):)?(?P<value>"[^"]*"?|\S*)')
_COMPARISON = re.compile(r"(>=|<=|>|<|=|)(.+)")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    "": operator.eq,
}
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

Test = Callable[[Run], bool]


class FilterError(ValueError):
    """The filter is not understood; the text says which part."""


@dataclass(frozen=True)
class RunFilter:
    """A filter that has been read."""

    tests: tuple[Test, ...] = ()

    def matches(self, run: Run) -> bool:
        return all(test(run) for test in self.tests)


def parse_filter(text: str) -> RunFilter:
    """Raises FilterError for a field that does not exist, and for a number that is none."""
    tests = []
    for match in _TERM.finditer(text):
        field, value = match["field"], match["value"].strip('"')
        if match["field"] is None and not match["value"]:
            continue
        test = _find_word(value) if field is None else _find_field(field, value)
        tests.append(_negate(test) if match["no"] else test)
    return RunFilter(tuple(tests))


def _find_word(word: str) -> Test:
    sought = word.lower()
    shown = ("id", "name", "state", "base", "method", "adapter", "tag", "group", "note")
    return lambda run: any(sought in text.lower() for name in shown for text in TEXTS[name](run))


def _find_field(field: str, value: str) -> Test:
    if field in TEXTS:
        values = [part.lower() for part in value.split(",") if part]
        read = TEXTS[field]
        return lambda run: not values or any(part in text.lower() for text in read(run) for part in values)
    if field not in NUMBERS and "/" not in field:
        known = ", ".join(FIELDS)
        raise FilterError(
            tr(
                "there is no field {field}{did_you_mean}",
                field=field,
                did_you_mean=did_you_mean(field, FIELDS) or f": {known}, or a metric",
            )
        )
    if not value:
        return lambda run: True  # it is being typed
    number = NUMBERS.get(field) or _read_metric(field)
    compare, bound = _read_comparison(field, value)

    def holds(run: Run) -> bool:
        found = number(run)
        return found is not None and compare(found, bound)

    return holds


def _read_metric(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.metrics.get(name)


def _read_comparison(field: str, text: str) -> tuple[Callable[[float, float], bool], float]:
    match = _COMPARISON.fullmatch(text)
    if match is None or match[2] in _COMPARE:
        return (lambda found, bound: True), 0.0  # it is being typed
    sign, number = match.groups()
    unit = 1.0
    if field == "age" and (found := re.fullmatch(r"([\d.]+)([a-z]+)", number)):
        if found[2] not in _UNITS:
            raise FilterError(tr("{found} is no unit of time: {UNITS}", found=found[2], UNITS=", ".join(_UNITS)))
        number, unit = found[1], _UNITS[found[2]]
    try:
        return _COMPARE[sign], float(number.replace(",", "").removesuffix("e").removesuffix("e-")) * unit
    except ValueError:
        raise FilterError(
            tr("{field}:{text} is not understood: {field} is a number, such as {field}:>1e-4", field=field, text=text)
        ) from None


def _negate(test: Test) -> Test:
    return lambda run: not test(run)
