"""Services end with the client that opened them, however that ends; a run that is training answers as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from cockpit.verbs.service_call import call_service
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import (
    Ask,
    Body,
    Cancel,
    Instruction,
    OpenService,
    Problem,
    ProblemError,
    Service,
    ServiceChanged,
    ServiceEvent,
    ServiceRef,
    Stop,
)
from engine.supervisor import processes
from engine.supervisor.devices import Devices
from engine.supervisor.processes import Leader
from engine.supervisor.services import MOST_ENDED, Services, Worker
from tests.scripted.bench import ROOT, Engine, wait_for

OPENS = """
import sys, time
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import OpenService
client = Client(Home.locate(sys.argv[1]))
print(client.request("service_open", OpenService(kind="chat")).id, flush=True)
time.sleep(600)
"""


def test_a_killed_clients_worker_is_ended_and_a_live_ones_stays(engine: Engine) -> None:
    ours = engine.client.request("service_open", OpenService(kind="chat")).id
    other = subprocess.Popen(
        [sys.executable, "-c", OPENS, str(engine.home.root)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    theirs = other.stdout.readline().strip()

    def listed() -> list[str]:
        return [each.id for each in engine.client.request("hello").services]

    assert sorted(listed()) == sorted([ours, theirs])
    other.send_signal(signal.SIGKILL)
    other.wait()
    wait_for(lambda: theirs not in listed(), 25, "the end of the killed client's worker")
    assert listed() == [ours]


def test_the_kernel_ends_a_service_before_a_run(engine: Engine) -> None:
    service = engine.client.request("service_open", OpenService(kind="chat"))
    run = engine.submit(steps=10_000)
    engine.wait_step(run, 1)

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert score(service.pid) == 800
    assert all(score(process.pid) < 800 for process in engine.processes(run))


def test_a_chat_out_of_memory_leaves_a_run_alone(engine: Engine) -> None:
    run = engine.submit(steps=10_000)
    engine.wait_step(run, 2)
    service = engine.client.request("service_open", OpenService(kind="chat")).id
    messages = {"messages": [{"role": "user", "content": "fill"}]}
    with Client(engine.home, start=False) as client, pytest.raises(ProblemError, match=r"chat|status|memory"):
        client.ask(Ask(service=service, request="r", question="generate", arguments=messages), lambda event: None)
    now = engine.show(run).run
    assert now.state == "running"
    engine.wait_step(run, now.step + 5)


def test_a_run_that_is_training_answers_like_a_service(engine: Engine) -> None:
    run = engine.submit(steps=10_000)
    engine.wait_step(run, 3)
    said: list[str] = []

    def heard(event: ServiceEvent) -> None:
        said.append(event.data["text"])

    messages = {"messages": [{"role": "user", "content": "one two"}]}
    with Client(engine.home, start=False) as client:
        answer = client.ask(Ask(service=run.id, request="r", question="generate", arguments=messages), heard)
        assert answer["reply"] == "one two " and answer["first_step"] >= 3
        assert said == ["one ", "two "]
        with pytest.raises(ProblemError, match="cannot answer 'load'"):
            client.ask(Ask(service=run.id, request="r", question="load"), heard)
        # Given up by another client: no reply is the property of who asked for it.
        messages = {"messages": [{"role": "user", "content": "long"}]}
        cancel = Cancel(service=run.id, request="l")
        threading.Timer(0.5, lambda: engine.client.request("service_cancel", cancel)).start()
        answer = client.ask(Ask(service=run.id, request="l", question="generate", arguments=messages), heard)
        assert answer["finish"] == "cancelled"
        engine.client.request("stop", Stop(run=run.id))
        engine.wait(run, "stopped")
        with pytest.raises(ProblemError, match="is stopped"):
            client.ask(Ask(service=run.id, request="r", question="generate", arguments=messages), heard)


def test_why_a_worker_ended_is_said_to_whoever_asks_it_then(engine: Engine) -> None:
    """The client closes what it has opened, also after a failure: that must not hide the reason."""
    service = engine.client.request("service_open", OpenService(kind="chat")).id
    ask = Ask(
        service=service, request="r", question="generate", arguments={"messages": [{"role": "user", "content": "fill"}]}
    )
    problems = []
    for again in (False, True):
        with Client(engine.home, start=False) as client, pytest.raises(ProblemError) as caught:
            client.ask(ask, lambda event: None)
        problems.append(caught.value.problem)
        assert problems[-1].code != "service.not_found", again
    assert problems[0].code == problems[1].code and problems[0].title == problems[1].title
    engine.client.request("service_close", ServiceRef(service=service))
    with pytest.raises(ProblemError) as caught:
        call_service(engine.home, "chat", "generate", ask.arguments, lambda event: None)
    assert caught.value.problem.code == problems[0].code
    with pytest.raises(ProblemError) as caught:
        engine.client.request("service_close", ServiceRef(service="chat-never"))
    assert caught.value.problem.code == "service.not_found"


class _Broken:
    """A chat whose model raises what no model should."""

    loaded = last_load = None
    cancelled: set[str] = set()

    def __init__(self, error: BaseException) -> None:
        self.error, self.link = error, self
        self.answers: list[Problem | None] = []

    def load(self, instruction: Instruction) -> None:
        raise self.error

    generate = score = unload = load

    def report_status(self, detail: str = "") -> None:
        pass

    def answer(self, instruction: Instruction, *, result: object, problem: Problem | None) -> None:
        self.answers.append(problem)


@pytest.mark.parametrize(
    "error",
    [IndexError("index out of range in self"), AttributeError("no rope"), AssertionError(), ZeroDivisionError("x")],
)
def test_a_worker_survives_whatever_a_model_raises(error: Exception) -> None:
    from engine.workers import chat, service_loop

    broken = _Broken(error)
    question = Instruction(id="1", name="generate", arguments={"request": "r"})
    chat.answer_request(broken, question)  # type: ignore[arg-type]
    (problem,) = broken.answers
    assert problem is not None and problem.cause and (str(error) in problem.cause)
    texts = service_loop.ErrorTexts("wrong", "failed")
    _, problem = service_loop.answer_request(question, {"generate": broken.load}, texts)  # type: ignore[dict-item]
    assert problem is not None and problem.title == "failed" and problem.traceback


def test_what_died_and_how_it_is_started_again(bare_home: Home) -> None:
    told: list[Body] = []
    failed: list[Problem] = []
    services = Services(
        bare_home, "x", str, Devices(list), told.append, lambda *_: None, lambda _, problem: failed.append(problem)
    )
    for number in range(MOST_ENDED + 2):
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        process.wait()
        service = Service(id=f"serve-{number}", kind="serve", target="tiny")
        services.workers[service.id] = Worker(service, Leader(process.pid, 0.0, child=process))
    services.reap()
    listed = services.list_services()
    assert len(listed) == MOST_ENDED and not services.workers
    problem = listed[-1].problem
    assert problem and listed[-1].state == "ended"
    assert "cockpit serve tiny" in problem.hint and "serve-11.log" in problem.hint and "resume" not in problem.hint
    assert len(failed) == MOST_ENDED + 2
    services.close(listed[-1].id)
    assert listed[-1].id not in [each.id for each in services.list_services()]
    assert isinstance(told[-1], ServiceChanged) and told[-1].service.problem is None, "the app takes it off its list"

    # One of an earlier supervisor: its exit status cannot be known, but that it was asked to stop is.
    for stopping in (False, True):
        services.ended.clear()
        ended = Service(id=f"serve-adopted-{stopping}", kind="serve")
        services.workers[ended.id] = Worker(ended, Leader(process.pid, 0.0), stopping=stopping)
        services.reap()
        assert [each.id for each in services.list_services()] == ([] if stopping else [ended.id])


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(300)"
SERVER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"
"""A server whose own process does not listen to SIGTERM, and has no job in its command line."""


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_nothing_of_another_programs_server_is_left(bare_home: Home, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("engine.supervisor.services.SERVER_GRACE", 0.2)
    monkeypatch.setattr("engine.supervisor.processes.GRACE", 0.2)
    services = Services(bare_home, "x", str, Devices(list), lambda _: None, lambda *_: None, lambda *_: None)
    service = Service(id="serve-1", kind="serve", target="tiny")
    command = [sys.executable, "-c", SERVER, "--job", service.id, "--home", str(bare_home.root)]
    leader = processes.start(command, bare_home.root / "log", dict(os.environ))
    services.workers[service.id] = Worker(service, leader)
    (child,) = wait_for(lambda: psutil.Process(leader.pid).children())
    wait_for(lambda: (bare_home.root / "log").read_bytes(), what="the child's first word")
    if how == "killed":
        assert leader.child
        leader.child.kill()
        leader.child.wait()
        services.reap()
    else:
        services.close(service.id)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10.0, "the end of all")
    assert not services.workers
