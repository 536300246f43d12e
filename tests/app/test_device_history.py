"""The devices of a run over its steps: on the axis of the loss, the straggler and the hot card in sight."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import pytest

from cockpit.screens.device_history import SETTLE, DeviceHistoryScreen
from cockpit.state.device_history import (
    HELD,
    Asked,
    Track,
    cells,
    find_stragglers,
    make_tracks,
    needed_step,
    straggles,
)
from cockpit.widgets.chart import Chart
from cockpit.widgets.chart_raster import GUTTER
from cockpit.widgets.chart_window import Window
from cockpit.widgets.device_strips import DeviceStrips
from engine.protocol.messages import CLOCK, Device, Host, Message, Series, SeriesReply, Telemetry, TelemetryHistory
from tests.app.fake import GIGA, FakeEngine, demo_run, telemetry
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until

STEPS, PERIOD, AGO = 200, 60.0, 12_000.0


class Past(FakeEngine):
    """A run of 200 steps of a minute each on all cards; card 3 straggles from step 100 on, and card 5 is hot. With
    `seconds` there is a sample a second, and card 1 stands still for 20 seconds of step 160."""

    def __init__(self, devices: int, *, seconds: bool = False) -> None:
        self.seconds = seconds
        run = demo_run(step=STEPS, max_steps=STEPS, started=time.time() - AGO, devices=list(range(devices)))
        super().__init__(run, devices=devices)
        self.begun = time.time() - AGO

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        if operation == "telemetry" and getattr(message, "first", None) is not None:
            self.requests.append((operation, message))  # type: ignore[arg-type]
            if self.seconds:
                return TelemetryHistory(samples=self.read(message))
            return TelemetryHistory(samples=[self.sample(at) for at in range(1, STEPS + 1)])
        reply = await super().request(operation, message, timeout)
        if operation == "series":
            steps = list(range(1, STEPS + 1))
            moments = [self.begun + PERIOD * step for step in steps]
            clock = Series(name=CLOCK, first_step=steps, last_step=steps, low=moments, high=moments, last=moments,
                           total=STEPS)  # fmt: skip
            return SeriesReply(run=reply.run, series=[clock if each.name == CLOCK else each for each in reply.series])
        return reply

    def read(self, query: Any) -> list[Telemetry]:
        """As the registry does: the last sample in each of `query.points` equal parts of the time."""
        last = query.last or time.time()
        samples = []
        for part in range(1, query.points + 1):
            moment = math.floor(query.first + (last - query.first) * part / query.points)
            at = moment - self.begun
            sample = self.sample(max(1, round(at / PERIOD)))
            sample.time = float(moment)
            sample.devices[1].utilisation = 0.0 if 160 * PERIOD <= at < 160 * PERIOD + 20 else 95.0
            samples.append(sample)
        return samples

    def sample(self, step: int) -> Telemetry:
        past = telemetry(self.devices)
        for device in past.devices:
            device.utilisation = 20.0 if device.index == 3 and step > 100 else 95.0
            device.temperature = 96.0 if device.index == 5 else 60.0
            device.power_limit = 700.0
        past.time = self.begun + PERIOD * step - 1
        return past


@pytest.mark.parametrize(("devices", "size"), [(8, HIGH), (16, LOW), (0, LOW)])
async def test_devices_over_the_steps_of_the_run(devices: int, size: tuple[int, int]) -> None:
    engine = Past(devices)
    async with run_app(engine, size) as pilot:
        await pilot.press("D")
        await until(pilot, lambda: isinstance(pilot.app.screen, DeviceHistoryScreen) and pilot.app.screen.quantity)
        screen = pilot.app.screen
        assert isinstance(screen, DeviceHistoryScreen)
        await until(pilot, lambda: "mean of what is shown" in screen_text(pilot))
        asked: Any = next(each for name, each in engine.requests if name == "telemetry" and each.first)  # type: ignore[attr-defined]
        assert asked.first < engine.begun + PERIOD and 0 < asked.points <= 1000
        assert_fits(pilot)
        if not devices:
            assert "host" in screen_text(pilot) and "CPU" in screen_text(pilot) and " 93%" in screen_text(pilot)
            return
        assert " 0  95%" in screen_text(pilot) and " 3▼ 58%" in screen_text(pilot)
        # The bars of the straggler fall in the middle of the loss's axis.
        chart, strip = screen.query_one(Chart), screen.query(DeviceStrips).first()
        assert strip.content_region.x == chart.content_region.x and strip.size.width == chart.size.width
        text = next(line for line, _ in strip._rows if line.startswith(" 3▼"))[GUTTER:]
        drop = next(at for at, bar in enumerate(text) if bar == "▂")
        first, last = chart.span()
        assert abs(first + (last - first) * drop / len(text) - 100) < 2 * (last - first) / len(text) + 1
        # The crosshair says what was at its moment, and a range is shared.
        for _ in range(3):
            await pilot.press("left")
        await until(pilot, lambda: "at the crosshair" in screen_text(pilot) and " 3▼ 20%" in screen_text(pilot))
        await pilot.press("escape", "home")
        await pilot.press("plus", "i")
        await until(pilot, lambda: "20%" in screen_text(pilot) or "▼" in screen_text(pilot))
        await pilot.press("minus", "t")
        await until(pilot, lambda: screen.quantity == "memory" and "60G" in screen_text(pilot))
        await pilot.press("t", "t")
        await until(pilot, lambda: " 5  96°" in screen_text(pilot))
        if size == LOW:
            assert "devices 0 to 11 of 16" in screen_text(pilot)
            await pilot.press("pagedown")
            await until(
                pilot, lambda: "devices 4 to 15 of 16" in screen_text(pilot) and "15  60°" in screen_text(pilot)
            )
            await pilot.press("pageup")
            await until(pilot, lambda: " 0  60°" in screen_text(pilot))
        await pilot.press("q")
        await until(pilot, lambda: pilot.app.screen is not screen)


async def test_zooming_in_asks_for_samples_as_fine_as_the_cells() -> None:
    engine = Past(2, seconds=True)

    def asked() -> list[Any]:
        return [each for name, each in engine.requests if name == "telemetry" and each.first]  # type: ignore[attr-defined]

    async with run_app(engine) as pilot:
        await pilot.press("D")
        await until(pilot, lambda: isinstance(pilot.app.screen, DeviceHistoryScreen) and pilot.app.screen.quantity)
        screen = pilot.app.screen
        assert isinstance(screen, DeviceHistoryScreen)
        chart = screen.query_one(Chart)
        await until(pilot, lambda: screen.query(DeviceStrips).first()._rows)
        assert len(asked()) == 1, "there is a sample for each cell"
        chart._look(Window(range=(158.0, 162.0)))
        await until(pilot, lambda: len(asked()) == 2)
        shown = [screen._moment(edge) for edge in chart.span()]
        query = asked()[1]
        assert (query.first, query.last) == pytest.approx(shown)
        width = chart.content_size.width - GUTTER
        assert width <= query.points <= width + 1, "a sample for each cell"

        def find_gap() -> list[int]:
            rows = [line for line, _ in screen.query(DeviceStrips).first()._rows]
            bars = next(line for line in rows if line.startswith(" 1"))[GUTTER:]
            return [at for at, bar in enumerate(bars) if bar in " ▁"]

        await until(pilot, find_gap)
        stood = find_gap()
        cell = (shown[1] - shown[0]) / width
        assert len(stood) * cell == pytest.approx(20, abs=2 * cell)
        assert shown[0] + stood[0] * cell == pytest.approx(engine.begun + 160 * PERIOD, abs=2 * cell)
        # What is there is not asked for again: not by the crosshair, not after looking at all of it.
        for key in ("left", "escape", "home"):
            await pilot.press(key)
        chart._look(Window(range=(158.0, 162.0)))
        await pilot.pause(2 * SETTLE)
        assert len(asked()) == 2 and find_gap() == stood


def test_a_span_is_known_where_it_was_asked_for_as_a_whole() -> None:
    asked = Asked([(0.0, math.inf, 60.0)])
    asked.add(100.0, 200.0, 1.0)
    assert (asked.step(100.0, 200.0), asked.step(150.0, 160.0), asked.step(150.0, 201.0)) == (1.0, 1.0, 60.0)
    assert asked.step(-1.0, 5.0) == math.inf
    assert needed_step([0.0, 0.1, 0.2]) == 1.0 and needed_step([0.0, 4.0, 8.0, 500.0]) == 4.0


def test_finer_samples_join_those_that_are_there() -> None:
    track, part = Track("0"), Track("0")
    for moment in (0.0, 60.0, 120.0, 180.0):
        track.add(moment, 1.0, 0.01)
    part.merge(track)
    assert part.moments == track.moments
    part = Track("0")
    for moment in (50.0, 60.0, 70.0):
        part.add(moment, 2.0, 0.02)
    track.merge(part)
    track.merge(Track("0"))
    assert track.moments == [0.0, 50.0, 60.0, 70.0, 120.0, 180.0]
    assert track.values == [1.0, 2.0, 2.0, 2.0, 1.0, 1.0] and track.shares == [value / 100 for value in track.values]


def test_a_cell_is_the_mean_of_its_samples_and_holds_the_newest() -> None:
    track = Track("0")
    for moment, value in ((10.0, 40.0), (11.0, 60.0), (11.0, 99.0), (100.0, 80.0)):
        track.add(moment, value, value / 100)
    found = cells(track, [0.0, 9.0, 20.0, 90.0, 110.0, 110.0 + HELD, 400.0])
    assert [cell and cell[0] for cell in found] == [None, 50.0, 60.0, 80.0, 80.0, None]
    assert track.at(12.0) == 60.0 and track.at(9.0) is None and track.at(101 + HELD) is None


def test_a_track_keeps_the_last_hour_and_a_sample_a_minute_of_before() -> None:
    track, start = Track("0"), 6_000_000.0
    for at in range(20_000):
        track.add(start + at, 50.0, 0.5)
    assert len(track.moments) == len(track.values) == len(track.shares) < 7_500
    assert track.moments[-1] == start + 19_999 and track.moments[-3600:] == [start + at for at in range(16_400, 20_000)]
    assert all(0 < later - before <= 60 for before, later in pairwise(track.moments))
    assert all(cells(track, [start + 300 * at for at in range(66)]))


def test_samples_far_apart_stand_for_the_time_between_them() -> None:
    samples = [Telemetry(time=1000.0 * at, host=Host(cpu_percent=10.0)) for at in range(4)]
    (cpu, _) = make_tracks(samples, "host")
    cpu.held = 2000.0
    assert all(cells(cpu, [100.0 * at for at in range(35)])) and cpu.at(2900.0) == 10.0


def test_what_a_device_does_not_report_is_no_sample() -> None:
    cards = [Device(index=0, name="a"), Device(index=1, name="b", utilisation=5.0, memory_used=GIGA, memory_total=0)]
    samples = [Telemetry(time=float(at), host=Host(), devices=cards) for at in range(3)]
    assert [len(track.moments) for track in make_tracks(samples, "utilisation", [0, 1])] == [0, 3]
    assert [track.label for track in make_tracks(samples, "memory", [1])] == ["1"]
    assert [track.label for track in make_tracks(samples, "power", [7])] == ["0", "1"], "of another host: all"
    rows: list[list[tuple[float, float] | None]] = [
        [(90.0, 0.9), (90.0, 0.9), None],
        [(20.0, 0.2), (90.0, 0.9), (1.0, 0.0)],
    ]
    assert find_stragglers(rows) == [[False, False, False], [True, False, False]] and not find_stragglers([])
    assert straggles([True] * 2 + [False] * 8) and not straggles([True] + [False] * 9)
