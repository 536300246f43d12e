"""The list of runs: columns, sorting, filter, actions, two curves."""

from __future__ import annotations

import re

import msgspec
import pytest
from rich.cells import cell_len

from cockpit.widgets.chart import Chart
from cockpit.widgets.run_table import cut_middle
from engine.protocol.home import Home
from engine.protocol.messages import Problem, Resume, RunChanged, RunRef, RunRemoved, Service, ServiceChanged
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, RealEngine, assert_fits, run_app, screen_text, until
from tests.scripted.bench import Engine


def engine() -> FakeEngine:
    return FakeEngine(
        demo_run(id="live-run"),
        demo_run(id="done-run", state="completed", step=50, created=3.0, metrics={"train/loss": 0.1}),
        demo_run(id="三元组抽取-1120", state="stopped", step=20, created=2.0, metrics={"train/loss": 0.7}),
    )


def order(text: str) -> list[str]:
    names = ("live-run", "done-run", "三元组抽取-1120")
    return sorted((name for name in names if name in text), key=text.index)


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_all_runs_are_listed_and_wide_names_align(size: tuple[int, int]) -> None:
    async with run_app(engine(), size, first="runs") as pilot:
        await until(pilot, lambda: "3 runs" in screen_text(pilot) and "Stop" in screen_text(pilot))
        text = screen_text(pilot)
        assert order(text) == ["live-run", "done-run", "三元组抽取-1120"]
        for wanted in ("● running", "✓ completed", "■ stopped", "0.3124", "3 runs · 1 live", "Filter", "Detach"):
            assert wanted in text
        assert ("31/50" in text) == (size == HIGH)
        assert ("62 %" in text) == (size == LOW)
        assert_fits(pilot)


async def test_long_ids_of_one_profile_differ_in_the_list() -> None:
    name = "triples-extraction-with-a-long-name"
    runs = [demo_run(id=f"{name}-1121-0526-000{at}", name=name, created=float(at)) for at in range(3)]
    async with run_app(FakeEngine(*runs), LOW, first="runs") as pilot:
        await until(pilot, lambda: all(f"…-1121-0526-000{at} " in screen_text(pilot) for at in range(3)))


def test_the_middle_of_a_text_is_left_out() -> None:
    assert cut_middle("abcdefghijklm", 13) == "abcdefghijklm"
    assert cut_middle("abcdefghijklm", 8) == "abc…jklm"
    for cells in range(4, 30):
        short = cut_middle("三元组抽取-triples-抽取-0526-一二三四", cells)
        assert cells - 2 < cell_len(short) <= cells and short.count("…") == (cells < 38)


async def test_sort_filter_and_open() -> None:
    async with run_app(engine(), first="runs") as pilot:
        await pilot.press("t", "t", "t")
        await until(pilot, lambda: "sorted by loss" in screen_text(pilot))
        assert order(screen_text(pilot))[0] == "done-run"
        await pilot.press("slash", *"抽取", "enter")
        await until(pilot, lambda: "1 of 3 runs" in screen_text(pilot))
        assert order(screen_text(pilot)) == ["三元组抽取-1120"]
        await pilot.press("enter")
        await until(pilot, lambda: "■ stopped" in screen_text(pilot) and "step 20/50" in screen_text(pilot))
        assert pilot.app.current_mode == "dashboard"
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.current_mode == "runs")


async def test_delete_and_resume_ask_about_the_run_under_the_cursor() -> None:
    fake = engine()
    async with run_app(fake, first="runs") as pilot:
        await pilot.press("d", "r")  # the live run: neither
        await pilot.press("j", "r", "d")  # a completed run: nothing is left to do
        await until(pilot, lambda: "Delete done-run?" in screen_text(pilot))
        await pilot.press("escape", "d", "y", "j", "r")
        await until(pilot, lambda: "Resume 三元组抽取-1120?" in screen_text(pilot))
        await pilot.press("escape", "r", "y")
        await pilot.pause(0.1)
        told = [message for operation, message in fake.requests if operation in ("delete", "resume")]
        assert told[0] == RunRef(run="done-run")
        assert isinstance(told[1], Resume) and told[1].run == "三元组抽取-1120" and len(told) == 2


async def test_a_running_run_is_kept_up_to_date() -> None:
    fake = engine()
    async with run_app(fake, first="runs") as pilot:
        await pilot.press("j")
        fake.say(RunChanged(run=demo_run(id="live-run", step=44, metrics={"train/loss": 0.2222})))
        await until(pilot, lambda: "44/50" in screen_text(pilot) and "0.2222" in screen_text(pilot))
        assert pilot.app.screen.query_one("DataTable").cursor_row == 1  # type: ignore[attr-defined]


async def test_two_curves_over_each_other() -> None:
    fake = engine()
    async with run_app(fake, LOW, first="runs") as pilot:
        await pilot.press("o", "j", "o")
        chart = pilot.app.screen.query_one("#overlay", Chart)
        await until(pilot, lambda: len(chart.traces) == 2)
        text = screen_text(pilot)
        assert "● live-run" in text and "■ done-run" in text  # marks, not colour alone
        assert_fits(pilot)
        fake.say(RunRemoved(run="done-run"))
        await until(pilot, lambda: list(chart.traces) == ["live-run"])
        await pilot.press("escape")
        await until(pilot, lambda: not chart.display)


async def test_a_queued_run_changes_its_place(bare_home: Home) -> None:
    """With a real engine: the first run holds the host, two wait."""
    engine = Engine(bare_home)
    try:
        first, second, third = engine.submit(steps=100_000), engine.submit(steps=5), engine.submit(steps=5)
        engine.wait(first, "running")
        async with run_app(RealEngine, home=bare_home, first="runs") as pilot:
            await until(pilot, lambda: third.id in screen_text(pilot) and "queued 2" in screen_text(pilot))
            await pilot.press("up", "up", "K")  # the newest run is at the top; the cursor was on the one that runs
            await until(pilot, lambda: f"{third.id} is now number 1" in screen_text(pilot).replace("\n", ""))
            await pilot.press("down", "down", "K")
            await until(pilot, lambda: "only a queued run" in screen_text(pilot))
        assert [engine.show(run).run.position for run in (second, third)] == [2, 1]
    finally:
        engine.close()


def server(name: str, **changes: float) -> Service:
    figures = {"running": 3, "queued": 2, "served": 1280, "errors": 1, "tokens": 81_000, "tokens_per_second": 241.5}
    return Service(
        id=name,
        kind="serve",
        state="busy",
        target="smollm2-135m-instruct",
        device="cpu",
        detail="http://127.0.0.1:8000/v1",
        figures=figures | changes,
    )


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_what_is_served_is_shown_while_it_is(size: tuple[int, int]) -> None:
    fake = engine()
    async with run_app(fake, size, first="runs") as pilot:
        await until(pilot, lambda: "3 runs" in screen_text(pilot))
        assert "tok/s" not in screen_text(pilot)
        fake.say(*(ServiceChanged(service=server("serve-1", tokens_per_second=rate)) for rate in (0.0, 120.0, 241.5)))
        await until(
            pilot, lambda: re.search(r"[\u2801-\u28ff].*24[12] tok/s|24[12] tok/s.*[\u2801-\u28ff]", screen_text(pilot))
        )
        text = screen_text(pilot)
        for wanted in ("smollm2-135m-instruct", "running 3", "queued 2", "served 1.3k", ":8000"):
            assert wanted in text
        assert "errors 1" in text
        assert_fits(pilot)
        fake.say(*(ServiceChanged(service=server(f"serve-{index}")) for index in range(2, 6)))
        await until(pilot, lambda: "and 2 more" in screen_text(pilot))
        assert_fits(pilot)
        problem = Problem(title="The worker was killed by the kernel")
        ended = [
            msgspec.structs.replace(server(f"serve-{index}"), state="ended", problem=None) for index in range(1, 5)
        ]
        last = msgspec.structs.replace(server("serve-5"), state="ended", problem=problem)
        fake.say(*(ServiceChanged(service=each) for each in (*ended, last)))
        await until(
            pilot, lambda: "✗ The worker was killed" in screen_text(pilot) and "tok/s" not in screen_text(pilot)
        )
