"""Whether the metrics that a profile names are measured by its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.metrics import registry
from engine.metrics.metric import Direction
from engine.options import thresholds
from engine.protocol.text import did_you_mean

GROUP = "eval/"
"""The group of metrics of held-out rows."""


def metric_names(sections: Mapping[str, Any], directory: Any, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` for each metric that the run does not measure, or by which nothing can be the best.

    A threshold may name any metric, as a stage after training measures more than training does.
    """
    evaluation, checkpoint = sections.get("evaluation"), sections.get("checkpoint")
    for text in evaluation.thresholds if evaluation else ():
        name = thresholds.parse_threshold(text).name.removeprefix(GROUP)
        if "/" not in name and not registry.is_known(name):
            yield "evaluation.thresholds", f"there is no metric {name}{did_you_mean(name, registry.known_names())}"
    data, method = sections.get("data"), sections.get("method")
    if not (data and method and evaluation and checkpoint) or not (data.validation or data.split):
        return
    measured = registry.measured_in_training(sections)
    yield from _complain("checkpoint.best_by", checkpoint.best_by, measured, method.kind)
    if stopping := evaluation.early_stopping:
        yield from _complain("evaluation.early_stopping.metric", stopping.metric, measured, method.kind)


def _complain(key: str, name: str, measured: list[str], kind: str) -> Iterator[tuple[str, str]]:
    """What is wrong with ranking evaluations by a metric."""
    ranking = [f"{GROUP}{each}" for each in measured if registry.direction(each) != Direction.NEITHER]
    if name in ranking:
        return
    *others, last = ranking
    choice = f"set it to {', '.join(others)} or {last}" if others else f"set it to {last}"
    if name in (f"{GROUP}{each}" for each in measured):
        yield key, f"no value of {name} is better than another: {choice}"
    else:
        yield key, f"{name} is not measured by {kind}{did_you_mean(name, ranking)}: {choice}"
