"""What charts compute, against independent oracles: columns, smoothing, bands, ticks, axes, windows, the crosshair."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest

from cockpit.widgets.chart import Chart
from cockpit.widgets.chart_axes import (
    STEPS,
    Mapping,
    View,
    elapsed,
    linear,
    run_axes,
    stable_range,
    ticks,
    write_position,
    write_ticks,
    x_ticks,
)
from cockpit.widgets.chart_columns import Columns, envelope
from cockpit.widgets.chart_notes import draw_crosshair
from cockpit.widgets.chart_raster import BAND, BLANK, INVERSE, LINE, SHADED, Trace, chart, extremes, plot
from cockpit.widgets.chart_readout import describe_position
from cockpit.widgets.chart_window import Window
from cockpit.widgets.curve import CAPACITY, Bucket, Curve

_EIGHTHS = " ▁▂▃▄▅▆▇"


def noisy(count: int, seed: int = 0) -> Curve:
    draw, made = random.Random(seed), Curve()
    for step in range(1, count + 1):
        made.append(step, 3 * math.exp(-step / count * 4) + draw.random())
    return made


def points(curve: Curve) -> list[tuple[int, float]]:
    return [(bucket.first, bucket.middle) for bucket in curve.between(0, curve.last)]


def test_smoothing_is_the_debiased_average_of_all_points_and_columns_are_their_extremes() -> None:
    curve = noisy(700)
    known = points(curve)
    for smoothing in (0.0, 0.6, 0.99):
        for view in (View(0, 700, 0, 4), View(300, 420, 0, 4)):
            found = Columns().update(curve, view.first, view.last, 90, smoothing)
            assert [each.at for each in found] == sorted({each.at for each in found})
            for column in found:
                inside = [at for at, (step, _) in enumerate(known) if view.column(step, 90) == column.at
                          and view.first <= step <= view.last]  # fmt: skip
                values = [known[at][1] for at in inside]
                assert (column.low, column.high, column.points) == (min(values), max(values), len(values))
                assert math.isclose(column.mean, sum(values) / len(values))
                weights = [(1 - smoothing) * smoothing ** (inside[-1] - at) for at in range(inside[-1] + 1)]
                expected = sum(w * value for w, (_, value) in zip(weights, known, strict=False)) / sum(weights)
                assert math.isclose(column.smooth, expected, rel_tol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_growing_curve_has_the_columns_of_one_that_is_read_anew(smoothing: float) -> None:
    draw = random.Random(3)
    curve, kept, step = Curve(), Columns(), 0
    view = View(0, 3 * CAPACITY, 0, 1)
    mapping = linear(1.0)
    for turn in range(100):
        for _ in range(draw.choice([0, 1, 1, 2, 110])):
            step += draw.choice([1, 1, 1, 7])
            curve.append(step, draw.random())
        if turn == 50:
            view = View(200, 4 * CAPACITY, 0, 1)
        # The same mapping every time: a new one is a new axis.
        grown = kept.update(curve, view.first, view.last, 150, smoothing, mapping)
        anew = Columns().update(Curve([*curve.between(0, 10**9)]), view.first, view.last, 150, smoothing, mapping)
        assert len(grown) == len(anew)
        for one, other in zip(grown, anew, strict=True):
            assert one[:3] == other[:3] and one.points == other.points
            assert math.isclose(one.mean, other.mean) and math.isclose(one.smooth, other.smooth)


def test_the_band_stays_whole_behind_the_line() -> None:
    """No cell of the band is lost to the line: every cell between the extremes is shaded, the line's cells too."""
    curve = noisy(400)
    view, width, height = View(0, 400, 0.0, 4.2), 60, 14
    rows = plot([Trace(curve, smoothing=0.9)], [], view, width, height)
    band = envelope(Columns().update(curve, 0, 400, 2 * width, 0.9), 0)
    lines = sum(role & (SHADED - 1) == LINE for _, roles in rows for role in roles)
    assert lines > width / 2
    for at, low, high in band:
        top, bottom = view.line(high, height * 8), view.line(low, height * 8)
        for y in range((top >> 3) + 1, bottom >> 3):
            assert rows[y][1][at >> 1] & SHADED, (at, y)
    edges = {rows[y][0][x] for y in range(height) for x in range(width) if rows[y][1][x] & ~(SHADED | INVERSE) == BAND}
    assert len(edges & set(_EIGHTHS)) > 3


def test_without_shades_the_band_is_dots_and_needs_no_colour() -> None:
    rows = plot([Trace(noisy(400), smoothing=0.9)], [], View(0, 400, 0.0, 4.2), 60, 14, shades=False)
    roles = {role for _, each in rows for role in each}
    assert roles == {BLANK, BAND, LINE}


def test_ticks_are_round_distinct_and_inside_on_every_scale() -> None:
    draw = random.Random(1)
    for _ in range(3_000):
        exponent = draw.uniform(-7, 6)
        low = draw.choice([-1, 1]) * draw.random() * 10**exponent
        high = low + (draw.random() + 1e-3) * 10 ** (exponent + draw.uniform(-2.5, 1))
        found = ticks(low, high, 6)
        assert 2 <= len(found) <= 13
        assert all(low - 1e-9 * abs(low) <= each <= high + 1e-9 * abs(high) for each in found)
        labels = write_ticks(found)
        assert all(len(label) <= 6 for label in labels)
        assert all(one != other or not one for one, other in itertools.pairwise(labels))
    for low, high in ((0.31, 0.52), (-0.2, 0.3), (2.71, 2.74), (-3.0, -2.9), (0.0, 0.95)):  # less than a decade
        found = ticks(low, high, 6, log=True)
        assert len(found) >= 3 and all(low - 1e-9 <= math.log10(each) <= high + 1e-9 for each in found)
        assert len(set(write_ticks(found))) >= 3
    assert ticks(-4, 4, 4, log=True) == [10.0**each for each in range(-4, 5)]


def test_a_time_axis_has_round_times() -> None:
    assert [write_position(each, "time") for each in x_ticks(0, 3_600, 4, "time")] == ["0 s", "15:00", "30:00",
        "45:00", "1:00:00"]  # fmt: skip
    assert x_ticks(0, 40 * 86_400, 4, "time")[1] == 10 * 86_400
    assert [write_position(each, "epoch") for each in x_ticks(0, 1, 4, "epoch")] == ["0", "0.5", "1"]
    assert write_position(x_ticks(0, 9e9, 4, "tokens")[1], "tokens") == "5B"


def test_axes_map_steps_there_and_back() -> None:
    clock = elapsed([1, 5, 6, 8, 9], [100.0, 140.0, 139.0, 200.0, 210.0])  # a clock that was set back at step 6
    assert [clock.position(step) for step in (1, 3, 5, 9)] == [0.0, 20.0, 40.0, 110.0]
    assert all(math.isclose(clock.step(clock.position(step)), step) for step in (0.0, 1, 4.5, 7, 9, 20))
    axes = run_axes({"steps_per_epoch": 25.0, "trained_tokens": 5_000}, [1, 2], [10.0, 11.0])
    assert {kind: each.position(50) for kind, each in axes.items()} == {"epoch": 2, "tokens": 10_000, "time": 49}
    assert run_axes(None) == {} and elapsed([1], [2.0]) is STEPS
    assert run_axes({"steps_per_epoch": "x", "trained_tokens": [1]}) == {}  # a damaged journal


def test_any_values_can_be_drawn() -> None:
    for values in ([-1.79e308, 1.79e308, 1.0, 2.0], [math.inf, -math.inf, math.nan, 1.0], [5e-324, 0.0], [1e300, 3.0]):
        trace = Trace(Curve([Bucket(at, at, value, value, value) for at, value in enumerate(values)]), smoothing=0.6)
        for log in (False, True):
            found = extremes([trace], [], 0, 3, log) or (0.0, 1.0)
            rows = chart([trace], [], View(0, 3, *stable_range(None, *found), log), 40, 8)
            assert {len(text) for text, _ in rows} == {40}


def test_a_chart_names_the_axis_that_its_curves_have() -> None:
    panel = Chart("loss")
    curve = noisy(9)
    panel.kind, panel.window = "time", Window(range=(0, 5))
    panel.load({"a": Trace(curve)}, axes={"a": {"time": linear(10.0)}})
    assert panel.kind == "time" and panel.window.range == (0, 5)
    panel.load({"a": Trace(curve)}, axes={"a": {"epoch": linear(0.1)}})
    assert panel.kind == "step" and panel.mapping is STEPS and panel.window == Window()


def test_curves_over_another_axis_lie_where_that_axis_says() -> None:
    curve = Curve([Bucket(step, step, 1.0 * step, 1.0 * step, 1.0 * step) for step in range(1, 101)])
    slow = Mapping([0, 50, 100], [0.0, 10.0, 100.0])
    columns = Columns().update(curve, 0, 100, 101, 0.0, slow)
    for column in columns:
        assert abs(slow.position(column.high) - column.at) <= 1.0
    trace = Trace(curve, mapping=slow)
    assert extremes([trace], [], 0, 10, log=False) == (1.0, 50.0)


def test_windows_zoom_pan_and_follow() -> None:
    whole = (0.0, 1_000.0)
    assert Window().zoomed(1, whole, None).resolve(*whole) == (500.0, 1_000.0)
    followed = Window().zoomed(1, whole, None).resolve(0.0, 2_000.0)
    assert followed == (1_000.0, 2_000.0)  # the newest half, as the run goes on
    near = Window().zoomed(1, whole, 200.0)
    assert near.resolve(*whole) == (100.0, 600.0) and near.resolve(0.0, 9_000.0) == (100.0, 600.0)
    assert near.panned(-1, whole).resolve(*whole) == (0.0, 500.0)
    assert near.panned(1, whole).panned(1, whole).panned(1, whole).panned(1, whole).resolve(*whole) == (500.0, 1_000.0)
    assert Window().panned(1, whole) == Window()
    assert Window().on(700, 300, whole).range == (300, 700) and near.following() == Window()
    draw, window = random.Random(5), Window()
    for _ in range(2_000):
        match draw.randrange(3):
            case 0:
                at = draw.choice([None, draw.uniform(-50, 1_050)])
                window = window.zoomed(draw.choice([-1, 1]), whole, at)
            case 1:
                window = window.panned(draw.choice([-1, 1]), whole)
            case _:
                window = window.on(draw.uniform(0, 1_000), draw.uniform(0, 1_000), whole)
        first, last = window.resolve(*whole)
        assert -1e-6 <= first < last <= 1_000 + 1e-6 and last - first >= 0.9  # never empty, never outside


def test_the_crosshair_names_the_step_and_the_value_of_every_curve() -> None:
    one, other = noisy(50), noisy(20, seed=1)
    traces = {"a": Trace(one), "b": Trace(other, dashed=True)}
    lines = describe_position(traces, 10.2, "step", "eval", [(5.0, 0.5), (25.0, 0.25)])
    assert lines[0] == "step 10" and lines[1].startswith("━ a ") and lines[2].startswith("╍ b ")
    assert f"{points(one)[9][1]:.4g}" in lines[1] and f"{points(other)[9][1]:.4g}" in lines[2]
    assert lines[3] == "◆ eval 0.5"
    rows = [(" " * 40, bytes(40))] * 6
    for x in (0, 5, 20, 39):
        drawn = draw_crosshair(rows, x, [*lines, "宽字符"])
        assert all(text[x] == "│" and len(text) == 40 for text, _ in drawn)
        assert lines[1][:12] in drawn[1][0]


def test_a_frame_of_a_million_points_takes_a_few_milliseconds() -> None:
    curve = Curve([Bucket(at * 500, at * 500 + 499, 1.0, 2.0, 1.5 + (at % 7) / 20, 500) for at in range(2_000)])
    trace, view = Trace(curve, smoothing=0.9), View(0, 1_100_000, 0.0, 3.0)
    best = 9.0
    for step in range(1_000_000, 1_000_012):
        curve.append(step, 1.5)
        begun = time.process_time()
        trace.reduce(0, 1_100_000, 220)
        best = min(best, time.process_time() - begun)
    assert best < 0.001  # only the newest columns
    for _ in range(5):
        begun = time.process_time()
        chart([trace], [], view, 117, 24)
        best = min(best, time.process_time() - begun)
    assert stable_range((0.0, 3.0), 1.0, 2.9) == (0.0, 3.0) and best < 0.012
