"""Notices about runs reach an address of the profile and one of the settings, and no secret is told anywhere else."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.profile import ProfileError, find, load
from engine.protocol import states
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Resume, Run, Submit
from engine.supervisor import notices
from engine.supervisor.notices import Notice, Notices, describe
from engine.workers import notify
from tests.scripted.bench import Engine, wait_for


class Box(ThreadingHTTPServer):
    """Keeps what is posted; `/refuse` is answered with 500."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        box = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                box.posted.append((self.path, json.loads(body)))
                self.send_response(500 if "refuse" in self.path else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def box() -> Iterator[Box]:
    server = Box()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def submit(engine: Engine, port: int) -> Run:
    """A run whose profile names an address, and a variable of the submitter's that holds another."""
    settings = ("training.max_steps=3", "training.learning_rate=0.01", "logging.tensorboard=false")
    profile = load(find("triples-qlora"), (*settings, f"logging.notify=[$ADDRESS, json://127.0.0.1:{port}/refuse]"))
    apprise = pytest.importorskip("apprise", reason="the extra `notify` is not installed")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(apprise.__file__).parents[1])])
    environment = {"ADDRESS": f"json://127.0.0.1:{port}/profile", "PYTHONPATH": path}
    message = Submit(profile=profile.to_yaml(), directory="/", environment=environment)
    submitted: Run = engine.client.request("submit", message)
    return submitted


def test_completion_and_trouble_are_told_with_the_app_closed(engine: Engine, box: Box) -> None:
    port = box.server_port
    engine.home.settings.write_text(f"theme: nord\nnotify:\n  urls: [json://127.0.0.1:{port}/settings]\n")
    run = submit(engine, port)
    plots = engine.home.run(run.id).plots
    plots.mkdir(exist_ok=True)
    (plots / "loss_curve_latest.png").write_bytes(b"\x89PNG")
    engine.wait(run, states.COMPLETED)
    wait_for(lambda: len(box.posted) >= 3)
    told = dict(box.posted)
    assert set(told) == {"/profile", "/settings", "/refuse"}
    notice = told["/profile"]
    assert notice["title"].endswith("is completed") and notice["type"] == "success"
    assert run.id in notice["message"] and "step 3 of 3" in notice["message"] and "train/loss" in notice["message"]
    assert [each["filename"] for each in notice["attachments"]] == ["loss_curve_latest.png"]
    warning = wait_for(lambda: engine.show(run).warnings)
    assert "json://127.0.0.1" in warning[0] and "was not taken" in warning[0]
    engine.client.request("resume", Resume(run=run.id, changes={"training.max_steps": 4}))
    engine.wait(run, states.COMPLETED)
    wait_for(lambda: sum(path == "/profile" for path, _ in box.posted) == 2)


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("$SLACK_ADDRESS", True),
        ("slack://${TOKEN}/#runs", True),
        ("json://127.0.0.1:8000/x", True),
        ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", False),
        ("mailto://ada:secret@example.org", False),
        ("json://ada:secret@example.org", False),
    ],
)
def test_a_profile_holds_no_secret(address: str, taken: bool) -> None:
    try:
        load(find("triples-qlora"), [f"logging.notify=[{json.dumps(address)}]"])
    except ProfileError as error:
        assert not taken and "$NAME" in str(error)
    else:
        assert taken


def test_messages_hide_what_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notify.hide("slack://T1/A1/secret") == "slack://…"
    assert notify.hide("json://ada:secret@host:80/secret?token=1") == "json://host:80"
    for hidden in ("mailto:ada:secret@x", "secret", "$BOT/secret", "json://ada:se?cret@host", "json://h/?to=a@secret"):
        assert "secret" not in notify.hide(hidden) and "se" not in notify.hide(hidden).replace("json", ""), hidden
    monkeypatch.setenv("BOT", "tgram://secret")
    assert notify.expand("$BOT/x${BOT}") == "tgram://secret/xtgram://secret"
    with pytest.raises(notify.AddressError, match="NOT_SET") as raised:
        notify.expand("slack://T1JJ/$NOT_SET")
    assert "T1JJ" not in str(raised.value)


def test_figures_are_in_the_text() -> None:
    run = Run(
        id="a", state="failed", step=7, max_steps=9, metrics={"eval/f1": 0.5, "eval/f1.x": 1.0, "train/loss": 2.0}
    )
    assert "step 7 of 9" in describe(run) and "eval/f1 0.5" in describe(run) and "f1.x" not in describe(run)


def test_what_ended_while_there_was_no_engine_is_told_once_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    slow = threading.Event()

    def send(notice: Notice, environment: object) -> tuple[int, str]:
        sent.append(notice.title)
        return (1, "not taken") if slow.wait(20) else (0, "")

    monkeypatch.setattr(notices, "send_notice", send)
    profile = SimpleNamespace(logging=SimpleNamespace(notify=["$ADDRESS"]))
    runs: Any = SimpleNamespace(is_local=lambda _: True, load_profile=lambda _: profile, records={"new": 1})
    calls: list[Callable[[], None]] = []
    warned: list[str] = []
    made = Notices(Home(tmp_path), runs, calls.append, lambda record, code, *_: warned.append(code))
    for name, ended in (("old", time.time() - 60), ("new", time.time() + 1)):
        run = Run(id=name, state=states.COMPLETED, ended=ended)
        record: Any = SimpleNamespace(run=run, directory=RunDirectory(tmp_path / name), environment={})
        for _ in range(2):
            made.look(record)
    wait_for(lambda: sent)
    slow.set()
    wait_for(lambda: calls)
    calls[0]()
    assert sent == ["new is completed"] and warned == ["notify.failed"] and len(calls) == 1
