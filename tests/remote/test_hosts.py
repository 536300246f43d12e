"""The app on several hosts: each has its screens, its state and its requests, and the list of hosts shows them all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from textual.pilot import Pilot

from cockpit.app import CockpitApp
from cockpit.cli import main
from cockpit.connection.agent import Found
from cockpit.connection.attach import log_in, make_engines
from cockpit.connection.attachment import Attachment
from cockpit.connection.link import Link
from cockpit.connection.service_client import ServiceClient
from cockpit.connection.ssh import RemoteHost
from cockpit.connection.submission import build_submission
from cockpit.profiles.check import check_profile
from cockpit.profiles.files import ProfileFile
from cockpit.screens.target_choices import find_local_models
from engine.protocol.home import Home
from engine.protocol.messages import PROTOCOL, Problem, ProblemError, RunRef, Stop
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
    gone = Attachment(refuse, "gone", Link(RemoteHost.parse("gone")))
    async with open_app([engine, gone]) as pilot:
        await until(pilot, lambda: len(tried) >= 4, 10.0)
        waits = [later - earlier for earlier, later in pairwise(tried)]
        assert all(wait > 0.19 * 2**count for count, wait in enumerate(waits)), waits
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


@dataclass
class ScriptedLink:
    """A link that does what a test says when the terminal is left to ssh."""

    act: Callable[[], None]
    host: RemoteHost = field(default_factory=lambda: RemoteHost.parse("gone"))
    command: str = "cockpit --on gone"
    is_connected: bool = False
    found: Found | None = None
    given_up: int = 0

    def give_up(self) -> None:
        self.given_up += 1

    def connect(self, *, ask: bool) -> None:
        assert ask
        self.act()

    def close(self) -> None:
        pass


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    raise AssertionError("ctrl+c interrupts")


def fail() -> None:
    raise ProblemError(Problem(code="remote.ssh_failed", title="No way", hint="cockpit engine start"))


async def test_what_happens_while_ssh_asks_does_not_end_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl+c ends the attempt alone, and an attempt that is under way makes room. The hint names the host."""

    async def refuse() -> Any:
        raise ProblemError(Problem(code="remote.ssh_failed", title="There is no connection to gone"))

    link = ScriptedLink(interrupt)
    gone = Attachment(refuse, "gone", link)  # type: ignore[arg-type]
    monkeypatch.setattr(CockpitApp, "suspend", lambda app: nullcontext())
    async with open_app([gone]) as pilot:
        await pilot.press("H")
        await until(pilot, lambda: "Enter shows" in screen_text(pilot))
        before = signal.getsignal(signal.SIGINT)
        await pilot.press("a")
        await until(pilot, lambda: "given up" in [note.message for note in pilot.app._notifications])
        assert signal.getsignal(signal.SIGINT) is before
        link.act = fail
        await pilot.press("a")
        await until(pilot, lambda: "→ cockpit --on gone engine start" in told(pilot))
        assert link.given_up == 2
        link.is_connected = True
        await pilot.press("a")
        await until(pilot, lambda: "there is a connection already" in told(pilot))


def told(pilot: Pilot[None]) -> list[str]:
    return [line for note in pilot.app._notifications for line in note.message.splitlines()]


def test_files_and_models_of_another_host_are_not_looked_for_here(tmp_path: Path) -> None:
    text = (
        "model: {base: /only/there, tokenizer: /only/there}\ndata: {train: [{source: /only/there.jsonl}]}\n"
        "training: {micro_batch: 4}\nmethod: {kind: grpo, generations: 4, reward: {run: /only/there}}\n"
    )
    file = ProfileFile(tmp_path / "mine.yaml", "here")
    assert {"model.base", "method.reward.run"} <= {issue.key for issue in check_profile(text, file, NOWHERE).issues}
    assert check_profile(text, file, NOWHERE, "alpha").issues == []
    wrong = text.replace("run: /only/there", "task: unknown, metric: f1")  # is no file
    assert [issue.key for issue in check_profile(wrong, file, NOWHERE, "alpha").issues] == ["method.reward.task"]


def test_paths_are_those_of_the_engines_host() -> None:
    link = ScriptedLink(fail)
    engine = Attachment(asyncio.Event().wait, "gone", link)  # type: ignore[arg-type]
    link.found = Found(
        id=1, protocol=PROTOCOL, version="1", home="/h", directory="/home/ada", environment={"HOME": "/mnt/ada"}
    )
    typed = ("rows.jsonl", "~/rows.jsonl", "/data/rows.jsonl")
    assert [str(engine.locate(Path(path))) for path in typed] == [
        "/home/ada/rows.jsonl",
        "/mnt/ada/rows.jsonl",
        "/data/rows.jsonl",
    ]


async def test_a_question_to_the_far_side_never_has_the_apps_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ssh has no standard input and a session of its own, and ends when the question is dropped."""
    link = ScriptedLink(fail)
    script = "import os, sys, time; assert not os.read(0, 1); print(os.getsid(0), flush=True); time.sleep(60)"
    link.build_command = lambda *_: [sys.executable, "-c", script]  # type: ignore[attr-defined]
    asked = asyncio.create_task(find_local_models(NOWHERE, link))  # type: ignore[arg-type]
    found: list[psutil.Process] = []
    while not found:
        await asyncio.sleep(0.05)
        found = [each for each in psutil.Process().children() if script in each.cmdline()]
    assert os.getsid(found[0].pid) == found[0].pid
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    psutil.wait_procs(found, 5)
    assert not found[0].is_running()


@pytest.mark.parametrize("names", [["."], [".", "alpha"], ["alpha"]])
def test_home_is_that_of_every_named_host(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Home, Sequence[Attachment]]] = []
    monkeypatch.setattr("cockpit.verbs.open_app.is_interactive", lambda: True)
    monkeypatch.setattr("cockpit.session.run", lambda home, readonly, engines: opened.append((home, engines)) or 0)
    monkeypatch.setattr("cockpit.connection.attach.log_in", lambda engines: {})
    on = [part for name in names for part in ("--on", name)]
    assert main([*on, "--home", str(tmp_path)]) == 0
    [(home, engines)] = opened
    assert (home.root == tmp_path) is ("." in names)
    assert [engine.command for engine in engines if not engine.is_here] == [
        f"cockpit --on alpha --home {tmp_path}" for name in names if name != "."
    ]


# ── with a real sshd ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_hosts_through_ssh(far: Loopback, alpha: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines behind two aliases; the server goes away and comes back, and so do both links."""
    monkeypatch.setattr("cockpit.connection.attachment.FIRST_WAIT", 0.2)
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
