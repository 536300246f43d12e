"""A run's checkpoint is exported from its screens, with a real engine and a scripted worker."""

from __future__ import annotations

from engine.protocol import states
from tests.app.screen import LOW, RealEngine, assert_fits, opened, shown, until
from tests.scripted.bench import Engine


async def test_a_run_is_exported_with_progress_and_can_be_given_up(engine: Engine) -> None:
    run = engine.submit(steps=3, pace=0.001)
    engine.wait(run, states.COMPLETED)
    async with opened(RealEngine, LOW, engine.home, first="runs") as pilot:
        await until(pilot, lambda: run.id[:20] in shown(pilot))
        await pilot.press("X")
        await until(pilot, lambda: "folder that others load" in shown(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "asking the export" in shown(pilot), 15)
        await until(pilot, lambda: "golden prompts answered alike: 2 of 3" in shown(pilot), 15)
        for wanted in (f"{run.id}-export", "KL 0.0123 nats a token", "98.0%", "dequantised base", "Enter leaves"):
            assert wanted in shown(pilot).replace("\n", ""), wanted
        assert_fits(pilot)
        await pilot.press("enter", "X")
        await until(pilot, lambda: "folder that others load" in shown(pilot))
        await pilot.press("ctrl+u", *"slow", "enter")
        await until(pilot, lambda: "asking the export" in shown(pilot), 15)
        await pilot.press("escape")
        await until(pilot, lambda: "Cancelled" in shown(pilot), 15)
        await pilot.press("escape")
        await until(pilot, lambda: "Cancelled" not in shown(pilot))
        assert engine.client.request("hello").services == []
    async with opened(RealEngine, LOW, engine.home, first="runs", readonly=True) as pilot:
        await pilot.press("X")
        await pilot.pause(0.3)
        assert "folder that others load" not in shown(pilot)
