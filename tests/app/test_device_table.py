"""Many devices, a line each: the straggler and the hot card are seen at a glance, and the loss keeps its room."""

from __future__ import annotations

import msgspec
import pytest

from cockpit.widgets.chart import Chart
from cockpit.widgets.device_table import COLUMN, FORECAST, device_table, memory_bar, table_height
from engine.protocol.messages import DeviceProcess
from tests.app.fake import FakeEngine, demo_run, telemetry
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until


def test_the_straggler_and_the_hot_card_are_marked_without_colour_too() -> None:
    sample = telemetry(8)
    devices = [msgspec.structs.replace(each, utilisation=90.0, temperature=60.0) for each in sample.devices]
    devices[3] = msgspec.structs.replace(devices[3], utilisation=37.0)
    devices[5] = msgspec.structs.replace(devices[5], temperature=103.0, power=None)
    lines = device_table(devices, sample.host, range(8), 100).plain.splitlines()
    assert [at for at, line in enumerate(lines) if "▼" in line] == [3] and " 37%▼" in lines[3]
    assert [at for at, line in enumerate(lines) if "!" in line] == [5] and "103°!" in lines[5]
    assert "500W" in lines[0] and "W" not in lines[5] and "CPU 93%" in lines[8]


def test_the_forecast_is_a_mark_in_the_bar_of_the_runs_own_cards() -> None:
    sample = telemetry(8)
    forecast = 0.75 * sample.devices[0].memory_total
    lines = device_table(sample.devices, sample.host, (0, 1), 100, forecast=forecast).plain.splitlines()
    assert [FORECAST in line for line in lines] == [True, True] + [False] * 7
    bars = ["".join(text for text, _ in memory_bar(0.5, share, 8)) for share in (0.0, 0.01, 0.5, 0.75, 1.0, 3.0)]
    assert bars == ["████····", "┃███····", "███┃····", "████·┃··", "████···┃", "████···┃"]


def test_only_other_peoples_devices_are_named() -> None:
    sample = telemetry(8)
    process = DeviceProcess(pid=1, user="bob", name="python", memory=1)
    devices = [msgspec.structs.replace(each, processes=[process]) for each in sample.devices]
    lines = device_table(devices, sample.host, (0, 1, 2), 100).plain.splitlines()
    assert ["bob" in line for line in lines[:8]] == [False] * 3 + [True] * 5


@pytest.mark.parametrize("width", [20, 2 * COLUMN - 1, 2 * COLUMN, 118, 200])
@pytest.mark.parametrize("count", [8, 9, 16, 17])
def test_no_line_is_wider_than_its_room(width: int, count: int) -> None:
    sample = telemetry(count)
    unknown = [msgspec.structs.replace(each, utilisation=None, memory_used=None, temperature=None, power=None,
                                       processes=None) for each in sample.devices]  # fmt: skip
    for devices in (sample.devices, unknown):
        content = device_table(devices, sample.host, (), width)
        lines = content.plain.splitlines()
        assert len(lines) == table_height(count, width, False)
        assert all(len(line) <= max(width, COLUMN) for line in lines[:-1])


@pytest.mark.parametrize(("size", "rows"), [(HIGH, 9), (LOW, 3)])
async def test_sixteen_devices_leave_the_loss_its_room(size: tuple[int, int], rows: int) -> None:
    async with run_app(FakeEngine(demo_run(), devices=16), size) as pilot:
        await until(pilot, lambda: "75.0/140G" in screen_text(pilot))
        await until(pilot, lambda: pilot.app.screen.query_one("#loss", Chart).size.height >= rows)
        assert "load 2.1/2" in screen_text(pilot)
        assert_fits(pilot)
