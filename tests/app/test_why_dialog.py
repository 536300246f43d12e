"""The dashboard's line and dialog about a run that is slow or does not learn."""

from __future__ import annotations

import pytest

from tests.app import fake
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until

SPLIT = {"time/data": 0.31, "time/forward": 0.25, "time/backward": 0.4, "time/optimizer": 0.03, "train/padding": 0.12}


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_d_says_what_stands_out_and_what_to_change_first(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake.CURVES, "train/loss", lambda step: 0.5 + 0.2 * max(0, step - 10))
    run = fake.demo_run()
    run.metrics |= SPLIT
    async with run_app(fake.FakeEngine(run), size=size) as pilot:
        await pilot.press("d")
        await until(pilot, lambda: "learning.diverging" in screen_text(pilot))
        text = screen_text(pilot)
        assert "1. the loss rises" in text and "lower training.learning_rate" in text
        assert "2. 31 % waiting for data" in text and "training.workers 4" in text
        assert "where the time goes" in text and "12 % of each batch is padding" in text
        assert text.index("waiting for data  ") < text.index("forward") < text.index("backward")
        assert_fits(pilot)
        await pilot.press("escape")


async def test_the_dashboard_has_a_line_of_advice() -> None:
    run = fake.demo_run()
    run.metrics |= SPLIT
    async with run_app(fake.FakeEngine(run)) as pilot:
        await until(pilot, lambda: "31 % waiting for data: training.workers 4" in screen_text(pilot))
