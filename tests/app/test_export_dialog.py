"""A run's checkpoint is exported from its screens, with a real engine and a scripted worker."""

from __future__ import annotations

from engine.protocol import states
from tests.app.screen import LOW, RealEngine, assert_fits, run_app, screen_text, until
from tests.scripted.bench import Engine


async def test_a_run_is_exported_with_progress_and_can_be_given_up(engine: Engine) -> None:
    run = engine.submit(steps=3, pace=0.001)
    engine.wait(run, states.COMPLETED)
    async with run_app(RealEngine, LOW, engine.home, first="runs") as pilot:
        await until(pilot, lambda: run.id[:20] in screen_text(pilot))
        await pilot.press("X")
        await until(pilot, lambda: "as a folder that other programs" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "asking the export" in screen_text(pilot), 15)
        await until(pilot, lambda: "golden prompts with equal replies: 2 of 3" in screen_text(pilot), 15)
        for wanted in (f"{run.id}-export", "KL 0.0123 nats a token", "98.0%", "dequantised base", "Enter closes"):
            assert wanted in screen_text(pilot).replace("\n", ""), wanted
        assert_fits(pilot)
        await pilot.press("enter", "X")
        await until(pilot, lambda: "as a folder that other programs" in screen_text(pilot))
        await pilot.press("ctrl+u", *"slow", "enter")
        await until(pilot, lambda: "asking the export" in screen_text(pilot), 15)
        await pilot.press("escape")
        await until(pilot, lambda: "Cancelled" in screen_text(pilot), 15)
        await pilot.press("escape")
        await until(pilot, lambda: "Cancelled" not in screen_text(pilot))
        assert engine.client.request("hello").services == []
    async with run_app(RealEngine, LOW, engine.home, first="runs", readonly=True) as pilot:
        await pilot.press("X")
        await pilot.pause(0.3)
        assert "as a folder that other programs" not in screen_text(pilot)
