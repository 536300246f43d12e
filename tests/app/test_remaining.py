"""A command is shown until it is taken, and the time that remains knows evaluations and stages."""

from __future__ import annotations

import pytest

from cockpit.state.app_state import RunHistory
from cockpit.state.remaining import count_evaluations, list_following, remaining_seconds
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import run_app, screen_text, until


def history(every: int | None, *seconds: float) -> RunHistory:
    start = {"time": 0.0, "step": 0, "facts": {"settings": {"evaluation.every_steps": every}}}
    evaluations = tuple({"time": 1.0, "seconds": each, "values": {}} for each in seconds)
    return RunHistory(start=start, evaluations=evaluations)


@pytest.mark.parametrize(
    ("every", "step", "last"), [(25, 31, 50), (25, 31, 60), (10, 20, 50), (None, 3, 9), (7, 50, 50), (1, 0, 5)]
)
def test_evaluations_are_counted_as_the_loop_makes_them(every: int | None, step: int, last: int) -> None:
    due = [at for at in range(step + 1, last + 1) if (every and at % every == 0) or at == last]
    assert count_evaluations(demo_run(step=step, max_steps=last), history(every)) == len(due)


def test_evaluations_take_their_time_and_stages_are_named() -> None:
    run = demo_run(
        metrics={"train/step_seconds": 2.0}, stages=["prepare", "train", "evaluate", "export"], stage="train"
    )
    assert remaining_seconds(run, history(25)) == 38.0
    assert remaining_seconds(run, history(25, 90.0, 60.0)) == 98.0
    assert list_following(run) == ["evaluate", "export"]
    run.stage = "evaluate"
    assert remaining_seconds(run, history(25)) is None and list_following(run) == ["export"]


async def test_a_command_is_shown_until_it_is_taken() -> None:
    fake = FakeEngine(demo_run(phase="evaluating 3 of 8"))
    fake.delay = 1.0
    async with run_app(fake) as pilot:
        await pilot.press("p")
        await until(pilot, lambda: "evaluating 3 of 8; pause follows" in screen_text(pilot))
        await until(pilot, lambda: "pause follows" not in screen_text(pilot))
        assert "evaluating 3 of 8" in screen_text(pilot)
