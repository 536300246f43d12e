"""What a run was forecast to take, beside what it took, on the dashboard."""

from __future__ import annotations

from typing import Any

import pytest

from cockpit.state.app_state import RunHistory, add_entry
from cockpit.widgets.run_panels import memory_row
from engine.protocol.messages import Told
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until

GB = 10**9


def entry(source: str, device: float | None, host: float, attempt: int = 1) -> dict[str, Any]:
    sizes = {"device_bytes": None if device is None else int(device * GB), "host_bytes": int(host * GB)}
    return {"kind": "memory", "time": 1.0, "attempt": attempt, "source": source, **sizes}


def test_the_figures_are_of_the_card_and_of_one_attempt() -> None:
    history = RunHistory()
    assert memory_row(history) == ("", "")
    for each in (entry("forecast", 14.2, 31), entry("rehearsed", 14.0, 30), entry("actual", 14.4, 30)):
        history = add_entry(history, each)
    assert memory_row(history) == ("forecast", "14.2 GB, tried 14.0, peak 14.4")
    history = add_entry(history, entry("rehearsed", None, 0.75, attempt=2))
    assert memory_row(history) == ("memory", "tried 750 MB")


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_the_dashboard_shows_them_side_by_side(size: tuple[int, int]) -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine, size) as pilot:
        for each in (entry("forecast", None, 3.1), entry("rehearsed", None, 3.0), entry("actual", None, 3.2)):
            engine.say(Told(run=run.id, entry=each))
        await until(pilot, lambda: "3.1 GB, tried 3" in screen_text(pilot))
        if size == HIGH:
            assert "forecast  3.1 GB, tried 3.0, peak 3.2" in screen_text(pilot)
        assert_fits(pilot)
