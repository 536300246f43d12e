"""Is one evaluation better than another, or is it noise? A paired bootstrap over the rows of both (Efron 1979; Koehn
2004).

Rows are drawn with replacement, the same for both, and every metric is computed anew from the sums of the drawn rows.
So a mean over tokens, a micro-averaged F1 and a corpus BLEU each have their own interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.metrics import registry
from engine.metrics.registry import Tallies

RESAMPLES = 1000
SHARE = 0.95
"""The share of the resampled differences inside the interval."""
_AT_ONCE = 50
"""Resamples drawn together; bounds memory."""


def compare(
    first: Mapping[int, Tallies],
    second: Mapping[int, Tallies],
    task: str | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """`compared_rows`, `resamples`, and under `differences` for each metric of both: `first`, `second`, `difference`
    (second − first), the bounds `low` and `high` of its 95 % interval, `beyond_noise` (0 is outside the interval) and
    `better` (1 if the second is better, -1 if the first is, 0 within noise or if the metric has no direction).

    Raises ValueError when the two have no row in common.
    """
    import numpy

    rows = sorted(first.keys() & second.keys())
    if not rows:
        raise ValueError("there is no row that both were measured on")
    sides = [_Sums([side[row] for row in rows]) for side in (first, second)]
    values = [registry.metrics(side.weigh(numpy.ones((1, len(rows)))[0]), task) for side in sides]
    names = [name for name in values[0] if name in values[1]]
    generator = numpy.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        weights = generator.multinomial(len(rows), [1 / len(rows)] * len(rows), size=count)
        for times in weights:
            pair = [registry.metrics(side.weigh(times), task) for side in sides]
            for name in names:
                if name in pair[0] and name in pair[1]:
                    drawn[name].append(pair[1][name] - pair[0][name])
    found = {
        name: _judge(values[0][name], values[1][name], drawn[name] or [0.0], registry.direction(name)) for name in names
    }
    return {"compared_rows": len(rows), "resamples": resamples, "differences": found}


def compare_means(
    first: Mapping[str, Mapping[int, float]],
    second: Mapping[str, Mapping[int, float]],
    directions: Mapping[str, int],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """As `compare`, for metrics that are means over rows, each over rows of its own: metric -> row -> value.

    Raises ValueError when the two have no row in common.
    """
    import numpy

    generator, found, most = numpy.random.default_rng(seed), {}, 0
    for name in (each for each in first if each in second):
        rows = sorted(first[name].keys() & second[name].keys())
        if not rows:
            continue
        most = max(most, len(rows))
        values = numpy.array([[side[name][row] for row in rows] for side in (first, second)])
        weights = generator.multinomial(len(rows), [1 / len(rows)] * len(rows), size=resamples)
        drawn = weights @ (values[1] - values[0]) / len(rows)
        found[name] = _judge(float(values[0].mean()), float(values[1].mean()), drawn, directions.get(name, 0))
    if not found:
        raise ValueError("there is no row that both were measured on")
    return {"compared_rows": most, "resamples": resamples, "differences": found}


def _judge(first: float, second: float, drawn: Any, direction: int) -> dict[str, Any]:
    """An entry of `differences`, from the differences of the resampled rows."""
    import numpy

    tail = 100 * (1 - SHARE) / 2
    low, high = (float(bound) for bound in numpy.percentile(drawn, [tail, 100 - tail]))
    beyond = low > 0 or high < 0
    return {
        "first": first,
        "second": second,
        "difference": second - first,
        "low": low,
        "high": high,
        "beyond_noise": beyond,
        "better": direction * (1 if second > first else -1) if beyond else 0,
    }


class _Sums:
    """The tallies of rows as a matrix for each measure."""

    def __init__(self, rows: list[Tallies]) -> None:
        import numpy

        self._names: dict[str, list[str]] = {}
        for row in rows:
            for measure, tally in row.items():
                known = self._names.setdefault(measure, [])
                known += [name for name in tally if name not in known]
        self._matrices = {
            measure: numpy.array([[float(row.get(measure, {}).get(name, 0)) for name in names] for row in rows])
            for measure, names in self._names.items()
        }

    def weigh(self, times: Any) -> dict[str, dict[str, float]]:
        """Sums by measure, with each row counted `times` times; measures without any count are left out."""
        found: dict[str, dict[str, float]] = {}
        for measure, names in self._names.items():
            sums = (times @ self._matrices[measure]).tolist()
            if any(sums):
                found[measure] = dict(zip(names, sums, strict=True))
        return found
