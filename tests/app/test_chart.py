"""Curves and their picture, without a terminal."""

from __future__ import annotations

import itertools
import time

from cockpit.state.formatting import format_number
from cockpit.widgets.canvas import changed_spans
from cockpit.widgets.chart_axes import View, extend_edge, stable_range, ticks
from cockpit.widgets.chart_raster import BAND, LINE, MARK, SECOND, SHADED, Row, Trace, chart, extremes, spark
from cockpit.widgets.curve import CAPACITY, Bucket, Curve


def curve(*values: float) -> Curve:
    made = Curve()
    for step, value in enumerate(values):
        made.append(step, value)
    return made


def texts(rows: list[Row]) -> list[str]:
    return [text for text, _ in rows]


def test_a_curve_keeps_its_extremes_in_bounded_memory() -> None:
    made = Curve()
    for step in range(20 * CAPACITY):
        made.append(step, -5.0 if step == 777 else 9.0 if step == 40_000 else 1.0)
    buckets = list(made.between(0, made.last))
    assert len(made) <= CAPACITY
    assert (min(bucket.low for bucket in buckets), max(bucket.high for bucket in buckets)) == (-5.0, 9.0)
    assert buckets[0].first == 0 and buckets[-1].last == 20 * CAPACITY - 1
    assert all(left.last + 1 == right.first for left, right in itertools.pairwise(buckets))


def test_a_known_step_is_not_taken_twice() -> None:
    made = curve(1.0, 2.0)
    assert not made.append(1, 5.0)
    assert made.append(2, 3.0)
    assert made.newest == 3.0


def test_a_falling_curve_falls_in_the_picture() -> None:
    rows = chart([Trace(curve(4, 3, 2, 1, 0), band=False)], [], View(0, 4, 0.0, 4.0), 27, 6)
    plot = [text[7:] for text in texts(rows)]
    begins = [len(text) - len(text.lstrip()) for text in plot[:5]]
    assert begins == sorted(begins) and begins[0] == 0
    assert plot[4].rstrip() == plot[4]  # the last value is at the lower right


def test_labels_are_whole_steps_and_round_values() -> None:
    rows = chart([Trace(curve(*range(51)))], [], View(0, 50, 0.0, 50.0), 100, 20)
    assert [part for part in texts(rows)[-1].replace("└", "").split("─") if part.strip()] == [
        "      0",
        "10",
        "20",
        "30",
        "40",
    ]
    assert [text[:6].strip() for text in texts(rows) if "┤" in text] == ["50", "40", "30", "20", "10", "0"]
    assert {len(text) for text in texts(rows)} == {100}


def test_lines_bands_marks_and_a_second_curve_have_roles_of_their_own() -> None:
    traces = [
        Trace(curve(1, 5, 1, 5, 1, 5, 1, 5), smoothing=0.8),
        Trace(curve(*[3.0] * 8), role=SECOND, band=False, dashed=True),
    ]
    rows = chart(traces, [(4, 6.0)], View(0, 7, 0.0, 7.0), 60, 12)
    roles = {role & (SHADED - 1) for _, line in rows for role in line}
    assert {BAND, LINE, SECOND} <= roles
    assert sum(text.count(MARK) for text in texts(rows)) == 1
    dashed = "".join(
        text for text in texts(chart(traces[1:], [], View(0, 7, 0.0, 7.0), 60, 12)) if "⠤" in text or "⠒" in text
    )
    assert " " in dashed.strip()[10:]


def test_a_log_scale_leaves_out_what_it_cannot_show() -> None:
    made = curve(100.0, 0.0, 1.0)
    assert extremes([Trace(made)], [], 0, 2, log=True) == (0.0, 2.0)
    assert extremes([Trace(curve(0.0))], [], 0, 2, log=True) is None
    assert ticks(0.0, 2.0, 4, log=True) == [1, 2, 5, 10, 20, 50, 100]


def test_edges_hold_still_while_points_fit() -> None:
    assert extend_edge(100, 0, 100, 0) == 100
    assert extend_edge(100, 0, 101, 0) == 126.25
    assert extend_edge(100, 0, 101, limit=110) == 110
    assert stable_range((0.0, 10.0), 1.0, 9.0) == (0.0, 10.0)
    low, high = stable_range((0.0, 10.0), 1.0, 4.0)
    assert 0.0 <= low < 1.0 and 4.0 < high < 5.0
    flat = stable_range(None, 3.0, 3.0)
    assert flat[0] < 3.0 < flat[1]


def test_numbers_fit_their_gutter() -> None:
    for value in (0, 1, 0.25, -0.123456, 99_999, 123_456, 3e-4, 1.2345e-7, 1e30):
        assert len(format_number(value)) <= 6, value
    assert (format_number(3e-4), format_number(0.25), format_number(1_500_000)) == ("3e-4", "0.25", "1.5e6")


def test_only_changed_spans_are_repainted() -> None:
    before, now = ("a" * 40, bytes(40)), ("ab" + "a" * 30 + "b" + "a" * 7, bytes(40))
    assert list(changed_spans(before, now)) == [(1, 2), (32, 33)]
    near = ("abaab" + "a" * 35, bytes(40))
    assert list(changed_spans(before, near)) == [(1, 5)]
    recoloured = (before[0], bytes([1]) + bytes(39))
    assert list(changed_spans(before, recoloured)) == [(0, 1)]


def test_a_spark_shows_the_newest_values_at_the_right() -> None:
    rows = spark([0.0] * 4 + [100.0] * 4, 6, 2)
    assert rows[0][0].startswith(" " * 4) and rows[0][0].strip()
    assert {len(text) for text, _ in rows} == {6}


def test_a_frame_of_a_million_points_is_cheap() -> None:
    made = Curve([Bucket(at * 500, at * 500 + 499, 1.0, 2.0, 1.5 + (at % 7) / 20) for at in range(2000)])
    traces, view = [Trace(made)], View(0, 1_000_000, 0.0, 3.0)
    best = 9.0
    for _ in range(5):
        begun = time.process_time()
        extremes(traces, [], 0, 1_000_000, log=False)
        chart(traces, [], view, 110, 24)
        best = min(best, time.process_time() - begun)
    assert best < 0.05
