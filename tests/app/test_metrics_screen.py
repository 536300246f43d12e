"""The panels of all metrics: their layout, kept for each profile; filter, maximise, several runs, live points."""

from __future__ import annotations

import random
from typing import Any

from cockpit.connection.panel_store import load_layout
from cockpit.screens.metrics import MetricsScreen
from cockpit.state.panel_layout import PANEL_HEIGHT, PANEL_WIDTH, PanelLayout, page_of, panel_grid
from cockpit.widgets.chart import Chart
from cockpit.widgets.chart_raster import RUN, RUN_MARKS, SHADED
from engine.protocol.home import Home
from engine.protocol.messages import Points, RunChanged
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import assert_fits, run_app, screen_text, until

METRICS = {"train/loss": 0.3, "train/learning_rate": 1e-4, "train/grad_norm": 0.8, "eval/loss": 0.45}


def test_a_grid_shows_every_metric_or_fills_the_screen_with_panels_that_have_room() -> None:
    for width in range(20, 320, 7):
        for height in range(3, 90, 3):
            for count in (0, 1, 2, 5, 12, 40):
                columns, rows = panel_grid(width, height, count)
                room = max(1, width // PANEL_WIDTH) * max(1, height // PANEL_HEIGHT)
                assert columns * rows >= min(max(1, count), room)
                assert columns == 1 or width // columns >= PANEL_WIDTH
                assert rows == 1 or height // rows >= PANEL_HEIGHT
    assert panel_grid(200, 57, 12)[0] > panel_grid(120, 37, 12)[0] - 1
    assert page_of([*"abcde"], 2, 9) == (["e"], 2, 3) and page_of([], 4, 3) == ([], 0, 1)


def test_layouts_move_hide_and_survive_whatever_is_in_the_file() -> None:
    names = [*"edcba"]
    layout = PanelLayout().moved("a", 1, names)
    assert layout.arrange(names) == [*"bacde"]
    assert layout.moved("a", -9, names).arrange(names) == [*"abcde"]
    hidden = layout.toggled("c")
    assert hidden.arrange(names) == [*"bade"] and hidden.moved("a", 1, names).arrange(names) == [*"bdae"]
    assert hidden.arrange(names, "c") == ["c"]  # a filter finds hidden ones
    assert layout.arrange(["train/kl", "eval/kl"], "KL !train") == ["eval/kl"]
    draw = random.Random(1)
    for _ in range(300):  # a panel that is moved ends next to the one it passed
        name, by = draw.choice(names), draw.choice([-1, 1])
        before = layout.arrange(names)
        layout = layout.moved(name, by, names)
        at = max(0, min(4, before.index(name) + by))
        assert sorted(layout.arrange(names)) == sorted(names) and layout.arrange(names)[at] == name
    adjusted = layout.adjusted("a", logarithmic=True, smoothing=0.9, kind="time").toggled("b")
    assert PanelLayout.from_json(adjusted.to_json()) == adjusted
    junk: Any
    for junk in (None, 3, [], {"order": 5, "smoothing": {"a": "x", "b": 7}, "hidden": [1, None], "kind": []}):
        assert PanelLayout.from_json(junk) == PanelLayout()


async def test_panels_are_arranged_filtered_and_kept_for_the_profile(tmp_path: Any) -> None:
    run, home = demo_run(metrics=METRICS), Home(tmp_path)
    engine = FakeEngine(run)
    async with run_app(engine, (120, 40), home) as pilot:
        await pilot.press("m")
        await until(pilot, lambda: isinstance(pilot.app.screen, MetricsScreen))
        screen = pilot.app.screen
        assert isinstance(screen, MetricsScreen)

        def shown() -> list[str]:
            return [chart.heading for chart in screen.query(Chart) if chart.traces]

        await until(pilot, lambda: shown() == ["train/loss", "eval/loss", "train/learning_rate", "train/grad_norm"])
        assert_fits(pilot)
        await until(pilot, lambda: isinstance(screen.focused, Chart) and screen.focused.heading == "train/loss")
        await pilot.press("greater_than_sign")
        await until(pilot, lambda: shown()[:2] == ["eval/loss", "train/loss"])
        await until(pilot, lambda: isinstance(screen.focused, Chart) and screen.focused.heading == "train/loss")
        await pilot.press("y", "left")
        await until(pilot, lambda: len({chart.cross for chart in screen.query(Chart)}) == 1)  # all show the same place
        await pilot.press("enter")
        await until(pilot, lambda: "learning_rate" not in screen_text(pilot))
        engine.say(Points(run=run.id, attempt=1, values={"train/loss": [(32, 0.25)], "train/new": [(32, 1.0)]}))
        chart = next(each for each in screen.query(Chart) if each.heading == "train/loss")
        await until(pilot, lambda: chart.traces[run.id].curve.last == 32)
        await pilot.press("escape", "d")
        await until(pilot, lambda: "1 hidden" in screen_text(pilot))
        await pilot.press("slash", *"loss")
        await until(pilot, lambda: sorted(shown()) == ["eval/loss", "train/loss"])
        await pilot.press("enter", "escape", "escape", "escape")  # the crosshair, the filter, the screen
        await until(pilot, lambda: not isinstance(pilot.app.screen, MetricsScreen))
        kept = load_layout(home, run.name)
        assert kept.order[:2] == ("eval/loss", "train/loss")
        assert kept.hidden == kept.logarithmic == frozenset({"train/loss"})


async def test_a_resumed_run_is_loaded_once_and_a_new_metric_leaves_the_view_as_it_is() -> None:
    run = demo_run(metrics=METRICS)
    engine = FakeEngine(run)
    async with run_app(engine, (120, 40)) as pilot:
        await pilot.press("m")
        await until(pilot, lambda: isinstance(pilot.app.screen, MetricsScreen))
        screen = pilot.app.screen
        assert isinstance(screen, MetricsScreen)
        await until(pilot, lambda: all(chart.traces for chart in screen.query(Chart)) and screen.focused is not None)
        await pilot.press("left", "left", "enter")
        cross = screen.query_one(Chart).cross
        asked = sum(operation == "series" for operation, _ in engine.requests)
        for step in range(32, 40):
            engine.say(Points(run=run.id, attempt=2, values={"train/loss": [(step, 0.2)]}))
            await pilot.pause(0.02)
        loss = next(chart for chart in screen.query(Chart) if chart.heading == "train/loss")
        await until(pilot, lambda: loss.traces[run.id].curve.last == 39)
        assert sum(operation == "series" for operation, _ in engine.requests) == asked + 1
        engine.say(Points(run=run.id, attempt=2, values={"train/new": [(40, 1.0)]}))
        changed = demo_run(created=run.created, attempt=2, metrics=METRICS | {"train/new": 1.0})
        engine.say(RunChanged(run=changed))  # what a step measures comes before what the run has measured
        await until(pilot, lambda: "train/new" in [chart.heading for chart in screen.query(Chart)])
        await until(pilot, lambda: isinstance(screen.maximized, Chart) and screen.maximized.heading == "train/loss")
        assert cross is not None and {chart.cross for chart in screen.query(Chart)} == {cross}


async def test_a_metric_that_a_run_begins_to_record_has_the_runs_mark() -> None:
    runs = [demo_run(metrics=METRICS), demo_run(id="older", created=1.0, step=0, metrics=METRICS)]
    engine = FakeEngine(*runs)
    async with run_app(engine, (120, 40), first="runs") as pilot:
        await pilot.press("o", "j", "o", "m")
        await until(pilot, lambda: isinstance(pilot.app.screen, MetricsScreen))
        await until(pilot, lambda: all(each.traces for each in pilot.app.screen.query(Chart)))
        engine.say(Points(run="older", attempt=1, values={"train/loss": [(1, 2.0)]}))
        chart = next(each for each in pilot.app.screen.query(Chart) if each.heading == "train/loss")
        await until(pilot, lambda: "older" in chart.traces)
        marks = [(trace.role, trace.mark, trace.band) for trace in chart.traces.values()]
        assert sorted(marks) == [(RUN + at, RUN_MARKS[at], False) for at in range(2)]


async def test_marked_runs_are_drawn_over_each_other_and_need_no_colour() -> None:
    runs = [
        demo_run(metrics=METRICS),
        *(demo_run(id=f"older-{at}", name="older", state=state, step=50, created=float(at), metrics=METRICS)
          for at, state in enumerate(("completed", "failed"))),
    ]  # fmt: skip
    async with run_app(FakeEngine(*runs), (80, 24), first="runs") as pilot:
        await pilot.press("o", "j", "o", "j", "o", "m")
        await until(pilot, lambda: isinstance(pilot.app.screen, MetricsScreen))
        await until(pilot, lambda: all(len(each.traces) == 3 for each in pilot.app.screen.query(Chart)))
        chart = pilot.app.screen.query_one(Chart)

        def drawn() -> set[str]:
            rows = chart._rows
            return {text[at] for text, roles in rows for at, role in enumerate(roles) if role & (SHADED - 1) >= RUN}

        await until(pilot, lambda: set(RUN_MARKS[:3]) <= drawn())
        assert all(mark in screen_text(pilot).splitlines()[1] for mark in RUN_MARKS[:3])
