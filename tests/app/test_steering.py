"""Steering and trouble on the dashboard: what can be changed, what a held-back batch shows, replies, history, marks."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from cockpit.connection.engine_app import READING
from cockpit.widgets.chart import Chart
from engine.protocol.messages import Command, Continue, Message, RunChanged, Set, Told
from tests.app.fake import FakeEngine, bad_batch, demo_run, ledger
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until

SIZES = pytest.mark.parametrize("size", [HIGH, LOW])


def steered(engine: FakeEngine) -> list[tuple[str, Message]]:
    return [(operation, message) for operation, message in engine.requests if operation not in READING]


async def ready(pilot: Pilot[None]) -> None:
    await until(pilot, lambda: pilot.app.state.histories.get(pilot.app.state.selected or "") is not None)  # type: ignore[attr-defined]


async def test_a_setting_is_chosen_checked_and_set(size: tuple[int, int] = LOW) -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine, size) as pilot:
        await ready(pilot)
        await pilot.press("a")
        wanted = ("training.learning_rate  Learning rate, now 3e-4", "Last step, now 50", "Gradient clipping, now 1")
        await until(pilot, lambda: not [words for words in wanted if words not in screen_text(pilot)])
        assert_fits(pilot)
        await pilot.press("down", "enter")
        await until(pilot, lambda: "now 25; Steps between two evaluations" in screen_text(pilot))
        await pilot.press(*"often", "enter")
        await until(pilot, lambda: "often is not a number of steps" in screen_text(pilot))
        assert steered(engine) == []
        pilot.app.screen.query_one(Input).value = "10"
        await pilot.press("enter")
        await until(pilot, lambda: "25 → 10 from step 32 on" in screen_text(pilot))
        assert steered(engine) == [("set", Set(run=run.id, changes={"evaluation.every_steps": 10}))]


async def test_changes_are_marked_on_the_chart_and_thresholds_drawn(size: tuple[int, int] = LOW) -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine, size) as pilot:
        await ready(pilot)
        assert "┊" not in screen_text(pilot)
        engine.say(Told(run=run.id, entry=ledger(20, "training.learning_rate", 3e-4, 2e-4)))
        chart = pilot.app.screen.query_one("#loss", Chart)
        await until(pilot, lambda: chart.events == ((20, "lr"),) and "┊" in screen_text(pilot))
        text = screen_text(pilot)
        assert "lr" in text and "╌╌╌" in text and "eval < 1.2" in text
        assert "0.4512 ✓" in text and "0.94   ✗" in text
        assert_fits(pilot)
        await pilot.press("w")
        await until(pilot, lambda: "training.learning_rate  3e-4 → 2e-4" in screen_text(pilot))
        assert_fits(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: "● running" in screen_text(pilot))


@SIZES
async def test_a_held_back_batch_shows_its_rows_and_takes_a_choice(size: tuple[int, int]) -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine, size) as pilot:
        await ready(pilot)
        assert "Batch" not in screen_text(pilot)
        reason = bad_batch()["reason"]
        code = bad_batch()["code"]
        message = f"step 32 is held back: {reason}"
        warning = {"kind": "warning", "code": "training.batch_held", "step": 31, "message": message, "hint": "look"}
        for entry in (bad_batch(), warning, ledger(31, "pause", None, reason, code=code)):
            engine.say(Told(run=run.id, entry=entry))
        engine.say(RunChanged(run=demo_run(state="paused", reason=reason, code=code)))
        await until(pilot, lambda: "‖ step 32 is held back" in screen_text(pilot) and "b Batch" in screen_text(pilot))
        assert "b shows its rows" in screen_text(pilot)
        assert_fits(pilot)
        await pilot.press("b")
        wanted = (
            "not finite",
            "train.jsonl:42",
            "row 9",
            "抽取三元组",
            "8 rows, the 4 with the largest losses",
            "checkpoint of step 25 (repeats 6 steps",
        )
        await until(pilot, lambda: not [words for words in wanted if words not in screen_text(pilot)])
        assert_fits(pilot)
        text = screen_text(pilot)
        assert (
            text.index("train.jsonl:4 ")
            < text.index("train.jsonl:42")
            < text.index("row 9")
            < text.index("train.jsonl:8")
        )
        await pilot.press("enter", "down")
        await until(
            pilot, lambda: screen_text(pilot).count("%%%% %%%% broken row") == 2
        )  # in the table, and whole below it
        await pilot.press("s")
        await until(pilot, lambda: "skip: taken at step 31" in screen_text(pilot))
        assert steered(engine) == [("continue", Continue(run=run.id, choice="skip"))]


async def test_a_decided_batch_can_be_read_again_but_not_decided() -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine, LOW) as pilot:
        await ready(pilot)
        engine.say(Told(run=run.id, entry=bad_batch()))
        await until(pilot, lambda: "b Batch" in screen_text(pilot))
        await pilot.press("b")
        await until(pilot, lambda: "step 32 was held back" in screen_text(pilot))
        await pilot.press("s", "r", "c", "escape")
        await until(pilot, lambda: "● running" in screen_text(pilot))
        assert steered(engine) == []


async def test_trouble_says_its_reason_and_the_keys_and_p_goes_on() -> None:
    run = demo_run(state="paused", reason="disk low: 1.2 GB free, limits.disk_free_gb is 2", code="pause.disk_low")
    engine = FakeEngine(run)
    async with run_app(engine, LOW) as pilot:
        await until(pilot, lambda: "continues automatically when that is over" in screen_text(pilot))
        assert "‖ paused: disk low: 1.2 GB free" in screen_text(pilot)
        assert_fits(pilot)
        await pilot.press("p")
        await until(pilot, lambda: "continue: taken at step 31" in screen_text(pilot))
        assert steered(engine) == [("continue", Continue(run=run.id))]


@SIZES
async def test_a_long_warning_is_whole_or_says_where_it_is(size: tuple[int, int]) -> None:
    run = demo_run()
    engine = FakeEngine(run)
    message = (
        "out of memory: going on from step 12 with training.micro_batch 8 → 4 and "
        "training.accumulation 1 → 2: the same global batch, in the same order "
        "(CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB in total)"
    )
    hint = "nothing to do; training.gradient_checkpointing=true needs less memory too"
    async with run_app(engine, size) as pilot:
        await ready(pilot)
        engine.say(Told(run=run.id, entry={"kind": "warning", "step": 12, "message": message, "hint": hint}))
        await until(pilot, lambda: "out of memory: going on" in screen_text(pilot))
        words = " ".join(screen_text(pilot).split())
        assert ("needs less memory too" in words) == (size == HIGH)
        assert ("… w shows the rest" in words) == (size == LOW)
        assert_fits(pilot)
        await pilot.press("w")
        await until(pilot, lambda: "total)" in screen_text(pilot) and "memory too" in screen_text(pilot))


async def test_probes_and_kept_samples_are_one_key_away(size: tuple[int, int] = LOW) -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine, size) as pilot:
        await ready(pilot)
        for step, reply in ((0, "A physicist."), (25, "A chemist.")):
            told = {"kind": "sample", "probe": True, "step": step, "prompt": "Who was Curie?", "reply": reply}
            engine.say(Told(run=run.id, entry=told))
        await pilot.press("v")
        await until(pilot, lambda: "1 word new, 1 gone" in screen_text(pilot))
        assert_fits(pilot)
        assert screen_text(pilot).index("step 25") < screen_text(pilot).index("A physicist.")
        later = {"kind": "sample", "probe": True, "step": 50, "prompt": "Who was Curie?", "reply": "Both."}
        engine.say(Told(run=run.id, entry=later))
        await until(pilot, lambda: "step 50" in screen_text(pilot))  # while it is open
        await pilot.press("down")
        await until(pilot, lambda: '"subject": "Ada"' in screen_text(pilot) and "── reference" in screen_text(pilot))
        assert "f1 0.5" in screen_text(pilot)
        assert_fits(pilot)


async def test_read_only_looks_and_changes_nothing() -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine, readonly=True) as pilot:
        await ready(pilot)
        await pilot.press("a", "l", "v")
        await until(pilot, lambda: "Held-out rows" in screen_text(pilot))
        await pilot.press("escape", "w")
        await until(pilot, lambda: "Nothing yet" in screen_text(pilot))
        assert steered(engine) == []
        assert not any(isinstance(message, Command) for _, message in engine.requests)


async def test_a_command_that_waits_for_a_long_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.screens.run_actions.NOTICE_DELAY", 0.05)
    run = demo_run()
    engine = FakeEngine(run)
    engine.delay = 0.6
    async with run_app(engine) as pilot:
        await pilot.press("s")
        await until(pilot, lambda: "save: waits for the current step to end" in screen_text(pilot))
        await until(pilot, lambda: "save: taken at step 31" in screen_text(pilot))
