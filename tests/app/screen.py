"""Runs the app in a test, and reads its screen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from textual.pilot import Pilot

from cockpit.app import CockpitApp
from cockpit.connection.engine_app import connect
from engine.protocol.home import Home
from tests.app.fake import FakeEngine

HIGH, LOW = (120, 40), (80, 24)
NOWHERE = Home(Path("/nonexistent"))


class RealEngine:
    """In place of a `FakeEngine`: attach to the home's own."""

    connect = staticmethod(connect)


@asynccontextmanager
async def run_app(
    engine: FakeEngine | type[RealEngine], size: tuple[int, int] = HIGH, home: Home | None = None, **settings: Any
) -> AsyncIterator[Pilot[None]]:
    """The app on this engine, attached and drawn; without `home` in a new one."""
    with TemporaryDirectory() as folder:
        app = CockpitApp(home or Home(Path(folder)), connect=engine.connect, **settings)
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: app.state.connection == "attached")
            await pilot.pause(0.3)
            _wait_for_keys(pilot, app)
            yield pilot


def _wait_for_keys(pilot: Pilot[None], app: CockpitApp) -> None:
    """Have `pilot.press` return only when the keys have been handled. By itself it waits until little happens, which
    on a busy machine does not mean that all has happened."""
    press = pilot.press

    async def press_and_wait(*keys: str) -> None:
        await press(*keys)
        while app.is_running and not app.keys.idle:
            await asyncio.sleep(0.01)

    pilot.press = press_and_wait  # type: ignore[method-assign]


async def until(pilot: Pilot[None], condition: Callable[[], Any], seconds: float = 5.0) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await pilot.pause(0.05)
    raise AssertionError(f"did not come true within {seconds:g} s:\n{screen_text(pilot)}")


def screen_text(pilot: Pilot[None]) -> str:
    """The screen's text, a line a row. One that has not been laid out yet has an empty line."""
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips) or "\n"


def assert_fits(pilot: Pilot[None]) -> None:
    """Every row fills the screen's width in cells, wide characters included, and the frames' right edges line up."""
    width, height = pilot.app.size
    strips = pilot.app.screen._compositor.render_strips()
    assert len(strips) == height
    assert {sum(segment.cell_length for segment in strip) for strip in strips} == {width}
    for widget in pilot.app.screen.query("*"):
        if widget.display and widget.region.area:
            assert pilot.app.screen.region.contains_region(widget.region), f"{widget} is clipped: {widget.region}"
