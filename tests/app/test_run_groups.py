"""Groups in the list of runs, what each waiting run waits for, and priorities; in the app and by verbs."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.screens.runs import RunsScreen
from cockpit.state.run_groups import RunGroup, arrange
from cockpit.state.run_queue import describe_wait, list_queue
from engine.protocol import states
from engine.protocol.messages import Label, Message, Reorder, Run, RunChanged
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until
from tests.scripted.bench import Engine, wait_for


def make_runs() -> list[Run]:
    sweep = [
        demo_run(
            id=f"sweep-{at}-1203-101010-00a{at}",
            group="lr-sweep",
            state=state,
            step=step,
            created=1000.0 + at,
            position=position,
            started=0.0 if position else 990.0,
            metrics={"eval/loss": 0.5 - at / 10} if step else {},
        )
        for at, (state, step, position) in enumerate(
            [("completed", 50, 0), ("running", 20, 0), ("queued", 0, 1), ("queued", 0, 2)]
        )
    ]
    sweep[2].reason = "waits for device 0, which sweep-1 holds"
    alone = demo_run(id="alone-1203-090000-0b0b", state="completed", step=50, created=1010.0, metrics={})
    other = demo_run(id="other-1203-080000-0c0c", state="failed", group="抽取", created=500.0, metrics={})
    return [*sweep, alone, other]


class Grouping(FakeEngine):
    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> object:
        run = self.runs.get(getattr(message, "run", ""))
        if isinstance(message, Label) and run is not None:
            run.group = run.group if message.group is None else message.group
        elif isinstance(message, Reorder) and run is not None:
            run.priority = run.priority if message.priority is None else message.priority
        else:
            return await super().request(operation, message, timeout)
        self.requests.append((operation, message))
        self.say(RunChanged(run=run))
        return run


def test_any_list_is_arranged_without_losing_a_run_or_the_order() -> None:
    chance = random.Random(4)
    for _ in range(200):
        runs = [demo_run(id=str(at), group=chance.choice(("", "a", "b"))) for at in range(chance.randrange(9))]
        folded = {name for name in "abc" if chance.random() < 0.4}
        lines = arrange(runs, folded)
        headings = [line for line in lines if isinstance(line, RunGroup)]
        assert {heading.name for heading in headings} == {run.group for run in runs} - {""}
        assert all(heading.runs == [run for run in runs if run.group == heading.name] for heading in headings)
        shown = [line for line in lines if isinstance(line, Run)]
        assert sorted(run.id for run in shown) == sorted(run.id for run in runs if run.group not in folded)
        first = [line.runs[0].id if isinstance(line, RunGroup) else line.id for line in lines]
        tops = [each for each, line in zip(first, lines, strict=True) if isinstance(line, RunGroup) or not line.group]
        assert tops == sorted(tops, key=int)


def test_each_waiting_run_says_what_it_waits_for() -> None:
    queue = list_queue(make_runs())
    queue.append(demo_run(id="last", state="queued", position=3))
    assert [describe_wait(run, queue) for run in queue] == [
        "waits for device 0, which sweep-1 holds",
        f"waits until {queue[0].id} has started",
        f"waits until {queue[1].id} has started; 2 runs are before it",
    ]
    assert describe_wait(demo_run(state="queued", position=1), []) == "starts next"


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_groups_fold_and_runs_join_and_leave(size: tuple[int, int]) -> None:
    engine = Grouping(*make_runs())
    async with run_app(engine, size, first="runs") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await pilot.press("G", "ctrl+home")
        await until(pilot, lambda: "in 2 groups" in screen_text(pilot) and "▾" in screen_text(pilot))
        text = screen_text(pilot)
        rows = [next(line for line in text.splitlines() if name in line) for name in ("lr-sweep", "抽取", "sweep-2")]
        assert "4 runs" in rows[0] and (size == LOW or "0.4" in rows[0]) and "1 run " in rows[1]
        assert_fits(pilot)
        await pilot.press("down", "z")  # the first group's heading is below the run without a group
        await until(pilot, lambda: "▸" in screen_text(pilot) and "sweep-2" not in screen_text(pilot))
        assert screen.current_group is not None and screen.current_group.name == "lr-sweep"
        await pilot.press("space", "space")  # all of the group are chosen, and the next run or group
        await until(pilot, lambda: "5 chosen" in screen_text(pilot))
        await pilot.press("escape", "up", "up", "enter")
        await until(pilot, lambda: "sweep-2" in screen_text(pilot))
        await pilot.press("down", "P", *"x", "enter")  # "0x" is none, and it is asked again
        await until(pilot, lambda: "no whole number" in screen_text(pilot))
        await pilot.press("escape", "u", *["backspace"] * 8, *"best", "enter")
        moved = screen.current_run
        assert moved is not None
        await until(pilot, lambda: moved.group == "best" and "in 3 groups" in screen_text(pilot))
        if moved.state == "queued":
            await pilot.press("P", "backspace", *"7", "enter")
            await until(pilot, lambda: moved.priority == 7)
        await pilot.press("slash", *"group:best", "enter")
        await until(pilot, lambda: "1 of 6 runs in 1 group" in screen_text(pilot))
        assert_fits(pilot)
        await pilot.press("escape", "Z")
        await until(pilot, lambda: screen_text(pilot).count("▸") == 3)
        assert screen.app.settings.get("runs.folded", []) == ["best", "lr-sweep", "抽取"]
        before = screen.current_group
        await pilot.press("v")  # the columns are laid out anew: the cursor stays on its heading
        await until(pilot, lambda: screen.current_group is not None and screen.current_group == before)
        await pilot.press("G")
        await until(pilot, lambda: "▸" not in screen_text(pilot) and "sweep-2" in screen_text(pilot))


def test_the_queue_by_verbs(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(*arguments: str) -> object:
        assert main(["--home", str(engine.home.root), "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    def order() -> list[tuple[str, int]]:
        listed = verb("queue")
        assert isinstance(listed, list)
        return [(each["run"], each["priority"]) for each in listed]

    busy = engine.submit(steps=100_000)
    engine.wait(busy, states.RUNNING)
    a, b, c = (engine.submit(steps=2).id for _ in range(3))

    def find_reason() -> list[Any] | None:
        listed = verb("queue")
        assert isinstance(listed, list)
        return listed if busy.id in listed[0]["waits_for"] and listed[0]["holders"] else None

    waiting = wait_for(find_reason, what="the run that the first one waits for")
    assert waiting[1]["waits_for"] == f"waits until {a} has started"
    for arguments, expected in (
        (["--first", c], [(c, 0), (a, 0), (b, 0)]),
        (["--down", c], [(a, 0), (c, 0), (b, 0)]),
        (["--up", b], [(a, 0), (b, 0), (c, 0)]),
        (["--priority", "5", c], [(c, 5), (a, 0), (b, 0)]),
        (["--to", "2", c], [(a, 0), (c, 0), (b, 0)]),  # it leaves its priority behind
        (["--last", a], [(c, 0), (b, 0), (a, 0)]),
        (["--priority", "-1", "--first", b], [(b, 0), (c, 0), (a, 0)]),
    ):
        verb("queue", *arguments)
        assert order() == expected, arguments
    assert verb("group", a, "paper") == {"run": a, "group": "paper", "runs": [a]}
    assert verb("group", b, "paper") == {"run": b, "group": "paper", "runs": [a, b]}
    found = verb("runs", "group:paper")
    assert isinstance(found, list) and [each["id"] for each in found] == [a, b]
    assert verb("group", a, "--leave") == {"run": a, "group": "", "runs": []}
    for wrong in (["queue", "--first"], ["queue", a], ["queue", a, "--up", "--to", "3"], ["group", a, "x", "--leave"]):
        assert main(["--home", str(engine.home.root), *wrong]) == 2, wrong
    assert main(["--home", str(engine.home.root), "queue", busy.id, "--first"]) == 2
    assert "is not queued" in capsys.readouterr().err
