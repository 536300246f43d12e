"""The keys and the mouse on a chart: crosshair, range, pan, follow, smoothing, axes."""

from __future__ import annotations

from cockpit.widgets.chart import Chart
from engine.protocol.messages import Series
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import run_app, screen_text, until


class Clocked(FakeEngine):
    """Ten seconds a step."""

    def _series(self, name: str, last: int, lift: float) -> Series:
        if name != "clock/time":
            return super()._series(name, last, lift)
        steps, moments = list(range(1, last + 1)), [1e9 + 10.0 * step for step in range(1, last + 1)]
        return Series(name=name, first_step=steps, last_step=steps, low=moments, high=moments, last=moments)


async def test_a_chart_is_read_and_moved_with_keys_and_the_mouse() -> None:
    run = demo_run()
    engine = Clocked(run)
    async with run_app(engine) as pilot:
        chart = pilot.app.screen.query_one("#loss", Chart)
        await until(pilot, lambda: "train/loss" in chart.traces and chart.has_focus)
        await pilot.press("left")
        await until(pilot, lambda: "step 31" in screen_text(pilot) and "━ train/loss" in screen_text(pilot))
        await pilot.press("space", *["left"] * 20, "space")
        await until(pilot, lambda: chart.window.range is not None and " … " in screen_text(pilot))
        first, last = chart.span()
        assert 10 < first < last <= 32 and chart.cross is None
        await pilot.press("shift+left")
        assert chart.span()[0] < first
        engine.step(run, 32)  # a range stays where it is
        await until(pilot, lambda: chart.traces["train/loss"].curve.last == 32)
        assert chart.window.range is not None
        await pilot.press("end")
        assert chart.window.range is None
        await pilot.press("i")
        await until(pilot, lambda: "over time" in screen_text(pilot) and "4:00" in screen_text(pilot))
        await pilot.press("left")
        await until(pilot, lambda: "time 5:" in screen_text(pilot) and "· step 3" in screen_text(pilot))
        await pilot.press("escape")  # takes the crosshair away, and nothing else
        assert chart.cross is None and chart.is_attached
        await pilot.press("full_stop", "full_stop", "i")
        await until(pilot, lambda: "smoothed 0.9" in screen_text(pilot) and "over" not in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "gradient norm" not in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "gradient norm" in screen_text(pilot))
        await pilot.mouse_down(chart, offset=(20, 5))
        await pilot.mouse_up(chart, offset=(40, 5))
        await until(pilot, lambda: chart.window.range is not None)
