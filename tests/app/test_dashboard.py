"""The dashboard at both sizes, live, failed, empty, and its keys."""

from __future__ import annotations

import pytest

from cockpit.connection.engine_app import READING
from cockpit.widgets.chart import Chart
from engine.protocol.messages import Command, Device, DeviceProcess, Problem, Run, RunChanged, Series, Set, Stop
from tests.app.fake import LOG, FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_a_live_run_is_shown_whole(size: tuple[int, int]) -> None:
    async with run_app(FakeEngine(demo_run()), size) as pilot:
        wanted = (
            "● running", "triples-qlora", "62 %", "step 31/50", "epoch 0.62/1", "elapsed ", "remaining ", "412 tok/s",
            "3.1 samples/s", "loss 0.3124", "4.0G/24.0G", "load 2.1/2", "2.0G", "◆ eval 0.4512", "json_validity",
            "4.9M/139M", "8 global", "抽取三元组", "step 31 loss", "1 Dashboard", "6 Doctor", "Detach",
        )  # fmt: skip
        await until(pilot, lambda: not [words for words in wanted if words not in screen_text(pilot)])
        text = screen_text(pilot)
        assert "step 30" not in text  # a carriage return overwrites its line
        assert sum(0x2800 < ord(character) < 0x2900 for character in text) > 40
        assert_fits(pilot)


async def test_eight_gpus_fit_on_a_small_screen() -> None:
    async with run_app(FakeEngine(demo_run(), devices=8), LOW) as pilot:
        await until(pilot, lambda: "load 2.1/2" in screen_text(pilot) and "╭─ loss" in screen_text(pilot))
        text = screen_text(pilot)
        for index in range(8):
            assert f"{60 + index}.0/140G {60 + index}°" in text
        assert_fits(pilot)


async def test_each_size_of_terminal_has_charts_with_rows_and_whole_figures() -> None:
    async with run_app(FakeEngine(demo_run(devices=[0]), devices=1), (200, 60)) as pilot:
        screen = pilot.app.screen
        for width, height, small in ((40, 12, 0), (60, 20, 0), (80, 24, 0), (100, 30, 2), (100, 32, 0), (120, 40, 2)):
            await pilot.resize_terminal(width, height)
            charts = list(screen.query("#rate, #grad").results(Chart))

            def is_arranged(shown: int = small, facts: bool = width >= 80, charts: list[Chart] = charts) -> bool:
                text = screen_text(pilot)
                figures = "60.0/140G 60°C 500W " in text  # no graph touches them
                seen = [chart for chart in charts if chart.is_on_screen]
                rows = min(chart.content_size.height for chart in [screen.query_one("#loss", Chart), *seen])
                return len(seen) == shown and rows >= 4 and figures and ("8 global" in text) == facts

            await until(pilot, is_arranged)
            assert_fits(pilot)


@pytest.mark.parametrize(("width", "named"), [(80, 1), (200, 2)])
async def test_the_reason_of_a_run_has_room_beside_its_id(width: int, named: int) -> None:
    run = demo_run(state="queued", position=2, reason="waits for other-1121-0501-11aa")
    async with run_app(FakeEngine(run), (width, 24)) as pilot:
        await until(pilot, lambda: run.reason in screen_text(pilot).splitlines()[1])
        title = screen_text(pilot).splitlines()[1]
        assert title.count("triples-qlora") == named and run.id in title


async def test_a_run_that_has_ended_expects_no_points() -> None:
    engine = FakeEngine(demo_run(state="preparing", step=0))
    engine._series = lambda name, last, lift: Series(  # type: ignore[method-assign]
        name=name, first_step=[], last_step=[], low=[], high=[], last=[], total=0
    )
    async with run_app(engine) as pilot:
        await until(pilot, lambda: screen_text(pilot).count("no points yet") == 3)
        engine.say(RunChanged(run=demo_run(state="failed", step=0)))
        await until(pilot, lambda: "no points yet" not in screen_text(pilot))
        assert screen_text(pilot).count("no points") == 3


async def test_points_and_log_arrive_live_and_a_later_attempt_replaces_the_earlier() -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine) as pilot:
        chart = pilot.app.screen.query_one("#loss", Chart)
        await until(pilot, lambda: "train/loss" in chart.traces)
        curve = chart.traces["train/loss"].curve
        assert curve.last == 31
        engine.step(run, 31)  # known already
        engine.step(run, 32)
        engine.log = LOG + "step 32 of 50\n"
        engine.say(RunChanged(run=demo_run(step=32)))
        await until(pilot, lambda: "step 32/50" in screen_text(pilot) and "step 32 of 50" in screen_text(pilot))
        assert (len(curve), curve.last) == (32, 32)
        engine.runs[run.id] = again = demo_run(attempt=2, step=26)
        engine.step(again, 26)
        await until(pilot, lambda: chart.traces["train/loss"].curve.last == 26)


async def test_a_failed_run_says_why_and_what_mends_it() -> None:
    problem = Problem(
        title="Rank 0 ran out of memory", cause="139.2 of 140 GiB in use", hint="halve training.micro_batch (8)"
    )
    failed = demo_run(state="failed", reason="exit status 1", problem=problem)
    async with run_app(FakeEngine(failed), LOW) as pilot:
        await until(pilot, lambda: "✗ failed" in screen_text(pilot))
        text = screen_text(pilot)
        for wanted in ("✗ failed", "exit status 1", problem.title, problem.cause, f"→ {problem.hint}"):
            assert wanted in text
        assert_fits(pilot)


async def test_without_runs_it_says_what_to_do() -> None:
    engine, run = FakeEngine(), demo_run()
    async with run_app(engine, LOW) as pilot:
        await until(pilot, lambda: "No runs yet." in screen_text(pilot))
        text = screen_text(pilot)
        assert "cockpit demo" in text and "3  Profile" in text
        assert "Pause" not in text  # nothing to pause
        engine.runs[run.id] = run
        engine.say(RunChanged(run=run))
        await until(pilot, lambda: "● running" in screen_text(pilot))


async def test_keys_steer_the_run_and_stopping_asks_first() -> None:
    run = demo_run()
    engine = FakeEngine(run)
    async with run_app(engine) as pilot:
        engine.requests.clear()
        for key in ("s", "e", "p"):
            await pilot.press(key)
        await pilot.press("x")
        await until(pilot, lambda: "Stop triples-qlora-1121-0526-0caf?" in screen_text(pilot))
        await pilot.press("enter", "n", "x", "y")
        await pilot.press("l")
        await until(pilot, lambda: "Learning rate" in screen_text(pilot))
        await pilot.press(*"2e-4", "enter")
        await pilot.pause(0.1)
        steering = [(operation, message) for operation, message in engine.requests if operation not in READING]
        assert steering == [
            ("save", Command(run=run.id)),
            ("evaluate", Command(run=run.id)),
            ("pause", Command(run=run.id)),
            ("stop", Stop(run=run.id, now=False)),
            ("set", Set(run=run.id, changes={"training.learning_rate": 2e-4})),
        ]


async def test_log_scale_zoom_and_the_next_run() -> None:
    other: Run = demo_run(id="older", name="older", created=1.0, state="completed", step=50)
    async with run_app(FakeEngine(demo_run(), other)) as pilot:
        chart = pilot.app.screen.query_one("#loss", Chart)
        await until(pilot, lambda: "train/loss" in chart.traces)
        await pilot.press("y", "plus")
        await until(pilot, lambda: "log · newest 1/2" in screen_text(pilot))
        assert chart.span()[0] > 10
        await pilot.press("right_square_bracket")
        await until(
            pilot, lambda: "✓ completed  older" in screen_text(pilot) and chart.traces["train/loss"].curve.last == 50
        )


def test_figures_that_a_device_does_not_give_are_dashes_and_nobody_is_named_wrongly() -> None:
    from cockpit.widgets.devices import _device_line, _heaviest_process

    silent = Device(index=0, name="", processes=None)
    assert _device_line(silent).plain.split() == ["–"] * 4 and _heaviest_process(silent) == "–"
    hidden = Device(index=0, name="T", power=50.0, processes=[DeviceProcess(pid=7), DeviceProcess(pid=8, memory=5)])
    assert _device_line(hidden).plain.split()[-1] == "50W" and _heaviest_process(hidden) == "unknown, pid 8"
