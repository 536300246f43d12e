"""What a judge says of replies: points for each criterion of its rubric."""

from __future__ import annotations

from collections.abc import Mapping

from engine.tasks.sufficient_stats import Tally, ratio


def tally(points: Mapping[str, int] | None) -> Tally:
    """Of one reply's points, from 1 to 5; None where the judge gave none that can be read."""
    return (
        {"asked": 1} if points is None else {"asked": 1, "judged": 1, **{f"of {name}": points[name] for name in points}}
    )


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """`judge_NAME`: mean points of each criterion; `judge`: the mean of those. `judge_unread`: the share of replies that got no points."""
    judged = sums.get("judged", 0)
    named = {name.removeprefix("of "): points / judged for name, points in sums.items() if name.startswith("of ")}
    found = {f"judge_{name}": points for name, points in named.items()}
    if named:
        found["judge"] = sum(named.values()) / len(named)
    return found | {"judge_unread": 1 - ratio(judged, sums["asked"])}
