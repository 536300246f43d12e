"""The app on several hosts: each has its screens, its state and its requests, and the list of hosts shows them all."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from cockpit.app import CockpitApp
from cockpit.connection.attach import log_in, make_engines
from cockpit.connection.attachment import Attachment
from cockpit.connection.link import Link
from cockpit.connection.service_client import ServiceClient
from cockpit.connection.ssh import FarHost
from cockpit.connection.submission import build_submission
from cockpit.profiles.check import check_profile
from cockpit.profiles.files import ProfileFile
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError, RunRef, Stop
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, NOWHERE, assert_fits, screen_text, until
from tests.remote.conftest import list_links
from tests.remote.loopback import Loopback
from tests.scripted.bench import Engine


@asynccontextmanager
async def open_app(engines: Sequence[Attachment], size: tuple[int, int] = HIGH) -> AsyncIterator[Pilot[None]]:
    app = CockpitApp(NOWHERE, engines=engines)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: all(engine.state.connection != "connecting" for engine in engines), 20.0)
        await pilot.pause(0.2)
        yield pilot


def two_fakes() -> tuple[list[FakeEngine], list[Attachment]]:
    one = FakeEngine(demo_run(id="on-one"), devices=2)
    two = FakeEngine(
        demo_run(id="on-two"),
        demo_run(id="waits-on-two", state="queued", position=1, reason=f"waits for GPU 0 {'x' * 99}", step=0),
    )
    fakes = [one, two]
    return fakes, [
        Attachment(lambda fake=fake: fake.connect(None), name)  # type: ignore[misc]
        for fake, name in zip(fakes, ("ada@one", "ada@two.example.org"), strict=True)
    ]


async def choose(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press("H")
    await until(pilot, lambda: "Enter shows" in screen_text(pilot))
    await pilot.press(*keys, "enter")
    await until(pilot, lambda: "Enter shows" not in screen_text(pilot))


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_the_list_has_cards_runs_and_queue_of_each(size: tuple[int, int]) -> None:
    _, engines = two_fakes()
    async with open_app(engines, size) as pilot:
        assert "ada@one" in screen_text(pilot).splitlines()[0]
        await pilot.press("H")
        await until(pilot, lambda: "Enter shows" in screen_text(pilot))
        text = screen_text(pilot)
        for expected in (
            "● ada@one",
            "attached  1 live · 0 queued",
            "GPU 0",
            "GPU 1",
            " 81%  61.0G/140G",
            "● running  on-one  31/50 62 %",
            "● ada@two.example.org",
            "1 live · 1 queued",
            "CPU",
            "◌ queued 1  waits-on-two  waits for GPU 0",
        ):
            assert expected in text, expected
        assert "xxx… │" in text  # cut, not wrapped
        assert_fits(pilot)


async def test_every_screen_works_on_the_host_that_was_chosen() -> None:
    fakes, engines = two_fakes()
    async with open_app(engines) as pilot:
        await pilot.press("4")
        await until(pilot, lambda: "on-one" in screen_text(pilot))
        await choose(pilot, "j")
        await until(pilot, lambda: "on-two" in screen_text(pilot))
        assert "ada@two.example.org" in screen_text(pilot).splitlines()[0]
        assert "on-one" not in screen_text(pilot)
        for fake in fakes:
            fake.requests.clear()
        await pilot.press("1")
        await until(pilot, lambda: fakes[1].requests)
        await pilot.pause(0.3)
        assert {getattr(message, "run", "on-two") for _, message in fakes[1].requests} <= {"on-two", "waits-on-two"}
        await choose(pilot, "k")
        await until(pilot, lambda: "on-one" in screen_text(pilot))
        assert not [message for _, message in fakes[0].requests if getattr(message, "run", "") == "on-two"]


async def test_what_a_screen_goes_on_doing_stays_with_its_host() -> None:
    """A task that a screen has begun asks its own host, also after the user has chosen another one."""
    fakes, engines = two_fakes()
    async with open_app(engines) as pilot:
        await pilot.press("4")
        await pilot.pause()
        screen = pilot.app.screen
        chosen = asyncio.Event()

        async def work() -> None:
            await chosen.wait()
            await screen.app.ask("show", RunRef(run="on-one"))  # type: ignore[attr-defined]
            assert screen.app.engine is engines[0]  # type: ignore[attr-defined]

        with screen._context():  # as in a handler of this screen
            screen.run_worker(work(), name="task")
        await pilot.pause(0.1)
        await choose(pilot, "j")
        for fake in fakes:
            fake.requests.clear()
        chosen.set()
        await until(pilot, lambda: fakes[0].requests)
        assert [operation for operation, _ in fakes[0].requests] == ["show"]
        assert not [operation for operation, message in fakes[1].requests if getattr(message, "run", "") == "on-one"]


async def test_a_lost_host_is_told_once_and_tried_again_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    async def refuse() -> Any:
        tried.append(asyncio.get_running_loop().time())
        raise ProblemError(
            Problem(code="remote.ssh_failed", title="There is no connection to gone", cause="No route to host")
        )

    monkeypatch.setattr("cockpit.connection.attachment.FIRST_WAIT", 0.2)
    engine = two_fakes()[1][0]
    gone = Attachment(refuse, "gone", Link(FarHost.parse("gone")))
    async with open_app([engine, gone]) as pilot:
        await until(pilot, lambda: len(tried) >= 4, 10.0)
        waits = [later - earlier for earlier, later in pairwise(tried)]
        assert waits == sorted(waits)
        told = [note for note in pilot.app._notifications if "No route to host" in note.message]
        assert len(told) == 1
        await pilot.press("H")
        await until(pilot, lambda: "No route to host" in screen_text(pilot))
        assert "○ gone" in screen_text(pilot)
        assert "no connection" in screen_text(pilot)
        await pilot.press("j", "enter")
        await until(pilot, lambda: "reconnecting in" in screen_text(pilot).splitlines()[0])


async def test_one_engine_has_no_list_of_hosts() -> None:
    app = CockpitApp(NOWHERE, connect=FakeEngine(demo_run()).connect)
    async with app.run_test(size=HIGH) as pilot:
        await until(pilot, lambda: app.state.connection == "attached")
        await pilot.press("H")
        await pilot.pause(0.2)
        assert "H Hosts" not in screen_text(pilot)
        assert len(app.screen_stack) == 1


# ── with a real sshd ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_hosts_through_ssh(far: Loopback, alpha: Engine) -> None:
    """Two engines behind two aliases; the server goes away and comes back, and so do both links."""
    run = alpha.submit(steps=10_000)
    engines = make_engines(["alpha", "beta", "."], Home(far.home("local")))
    del engines[2]
    assert log_in(engines) == {}
    async with open_app(engines) as pilot:
        await until(pilot, lambda: run.id in alpha_runs(engines[0]))
        await pilot.press("H")
        await until(pilot, lambda: f"running  {run.id}" in screen_text(pilot))
        await pilot.press("escape")
        assert engines[0].directory == "/"
        assert engines[0].shell["COCKPIT_HOME"] == str(far.home("alpha"))
        assert engines[1].shell["COCKPIT_HOME"] == str(far.home("beta"))
        await ask_chat(pilot)
        far.stop()
        await until(pilot, lambda: all(engine.state.connection == "lost" for engine in engines), 15.0)
        far.restart()
        await until(pilot, lambda: all(engine.state.connection == "attached" for engine in engines), 30.0)
        alpha.client.request("stop", Stop(run=run.id, now=True))
    assert not list_links()


def alpha_runs(engine: Attachment) -> list[str]:
    return [run.id for run in engine.state.runs.values() if run.state == "running"]


async def ask_chat(pilot: Pilot[None]) -> None:
    """A question to a chat worker of the host that is shown."""
    screen = pilot.app.screen
    answers: list[Any] = []

    async def work() -> None:
        chat = ServiceClient(pilot.app, "chat")  # type: ignore[arg-type]
        await chat.ask("load", {"target": "model", "directory": "/"})
        answers.append(await chat.ask("generate", {"messages": [{"role": "user", "content": "said there"}]}))
        await chat.close()

    with screen._context():
        screen.run_worker(work(), name="chat")
    await until(pilot, lambda: answers, 20.0)
    assert answers[0]["reply"].strip() == "said there"


def test_what_depends_on_the_host(far: Loopback, alpha: Engine, tmp_path: Path) -> None:
    """Environment, directories, models and the check of a profile are those of the engine's host."""
    [engine] = make_engines(["alpha"], NOWHERE)
    assert log_in([engine]) == {}
    assert engine.link is not None
    text = (
        "model: {base: /only/there}\ndata: {train: [{source: /only/there.jsonl}]}\n"
        "evaluation: {judge: {model: judge, api_key_env: JUDGE_KEY}}\n"
    )
    file = ProfileFile(tmp_path / "mine.yaml", "here")
    assert check_profile(text, file, NOWHERE).issues
    checked = check_profile(text, file, NOWHERE, engine.elsewhere)
    assert checked.profile is not None
    assert checked.notes == ["data and models are checked on alpha when it is launched"]
    assert [issue.key for issue in check_profile(f"{text}training: {{max_step: 1}}", file, NOWHERE, "alpha").issues]
    os.environ["JUDGE_KEY"] = "from here"
    try:
        message = build_submission(checked.profile, shell=engine.shell, directory=engine.directory)
    finally:
        del os.environ["JUDGE_KEY"]
    assert (message.directory, message.environment["JUDGE_KEY"]) == ("/", "from here")
    assert message.environment["COCKPIT_HOME"] == str(far.home("alpha"))
    run = alpha.submit(steps=1)
    alpha.wait(run, "completed")
    before = dict(engine.shell)
    assert engine.resume_environment(run.directory)["COCKPIT_HOME"] == str(far.home("alpha"))
    assert engine.shell == before
    command = engine.link.build_command("--json", "engine", "status")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert json.loads(done.stdout)["pid"] == alpha.process.pid
    engine.link.close()


def test_a_host_that_refuses_does_not_keep_the_others(far: Loopback, alpha: Engine) -> None:
    engines = make_engines(["alpha", "stranger"], Home(Path("/nonexistent")))
    problems = log_in(engines)
    assert {engine.name: problem.cause for engine, problem in problems.items()} == {
        "stranger": "Host key verification failed."
    }
    for engine in engines:
        assert engine.link is not None
        engine.link.close()
