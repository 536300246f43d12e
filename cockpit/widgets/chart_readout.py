"""What a chart's crosshair says: the position, and the values of all curves there. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from cockpit.language.translate import tr
from cockpit.state.formatting import format_number
from cockpit.widgets.chart_axes import STEPS, write_position
from cockpit.widgets.chart_axes import Mapping as Steps
from cockpit.widgets.chart_raster import Trace


def share_mapping(traces: Iterable[Trace]) -> Steps:
    """The horizontal axis of the first curve; that of steps without any."""
    return next((trace.mapping for trace in traces), STEPS)


def describe_position(
    traces: Mapping[str, Trace], at: float, kind: str, marks_name: str, marks: Sequence[tuple[float, float]]
) -> list[str]:
    """A line about the position, and one for each curve that has a value there: its name, its mean, and its extremes
    where a bucket of several points has them; then the newest mark up to there."""
    step = share_mapping(traces.values()).step(at)
    head = tr("step {write_position}", write_position=write_position(step))
    lines = [head if kind == "step" else f"{kind} {write_position(at, kind)} · {head}"]
    for name, trace in traces.items():
        bucket = trace.curve.nearest(trace.mapping.step(at))
        if bucket is None:
            continue
        line = f"{trace.mark or ('╍' if trace.dashed else '━')} {name} {format_number(bucket.middle)}"
        if bucket.low < bucket.high:
            line += f" ({format_number(bucket.low)} … {format_number(bucket.high)})"
        lines.append(line)
    before = bisect_right(marks, (at, float("inf")))
    if before:
        lines.append(f"◆ {marks_name} {format_number(marks[before - 1][1])}")
    return lines
