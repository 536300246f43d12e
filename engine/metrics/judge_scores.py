"""Points that a judge gives replies, for each criterion of its rubric."""

from __future__ import annotations

from collections.abc import Mapping

from engine.metrics.metric import Direction, Metric
from engine.tasks.sufficient_stats import Tally, ratio


def tally(points: Mapping[str, int] | None) -> Tally:
    """Of one reply's points, from 1 to 5 by criterion; None where the judge's answer could not be read."""
    if points is None:
        return {"asked": 1}
    return {"asked": 1, "judged": 1, **{f"of {name}": points[name] for name in points}}


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`judge_NAME`: mean points of each criterion. `judge`: the mean of those. `judge_unread`: the share of replies
    without points."""
    judged = sums.get("judged", 0)
    means = {name.removeprefix("of "): points / judged for name, points in sums.items() if name.startswith("of ")}
    values = {f"judge_{name}": points for name, points in means.items()}
    if means:
        values["judge"] = sum(means.values()) / len(means)
    return values | {"judge_unread": 1 - ratio(judged, sums["asked"])}


METRIC = Metric(
    {"judge_unread": Direction.LOWER, "judge": Direction.HIGHER, "judge_*": Direction.HIGHER},
    metrics,
)
