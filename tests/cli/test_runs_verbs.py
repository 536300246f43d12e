"""The verbs on runs, as processes, against a real engine with scripted workers."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cockpit.cli import main
from cockpit.verbs import output
from engine.protocol import states
from engine.protocol.home import Home
from tests.cli.conftest import Cockpit, command, environment
from tests.scripted.bench import Engine, wait_for

pytestmark = pytest.mark.usefixtures("engine")


def scripted(steps: int, pace: float = 0.01, *more: str) -> list[str]:
    settings = (f"training.max_steps={steps}", f"training.learning_rate={pace}", "logging.tensorboard=false", *more)
    return ["triples-qlora", *(part for setting in settings for part in ("--set", setting))]


def test_train_follows_to_the_end_and_prints_one_document(cockpit: Cockpit) -> None:
    answer = cockpit("train", *scripted(5), "--json")
    document = json.loads(answer.stdout)
    assert answer.returncode == 0
    assert (document["state"], document["step"], document["metrics"]["train/loss"]) == ("completed", 5, 0.4)
    assert f"{document['run']}  completed  step 5/5" in answer.stderr


def test_a_failed_job_exits_1_and_says_why(cockpit: Cockpit) -> None:
    answer = cockpit("train", *scripted(5, 0.01, "generation.seed=3"), "--json")
    document = json.loads(answer.stdout)
    assert (answer.returncode, document["state"]) == (1, "failed")
    assert "the data is cursed" in document["problem"]["cause"]
    assert "the data is cursed" in answer.stderr


def test_detach_prints_the_id_alone_and_stop_waits_for_the_end(cockpit: Cockpit, engine: Engine) -> None:
    answer = cockpit("train", *scripted(10_000), "--detach")
    run_id = answer.stdout.strip()
    assert answer.stdout == f"{run_id}\n"
    wait_for(lambda: json.loads(cockpit("show", run_id, "--json").stdout)["step"] > 2)

    shown = json.loads(cockpit("show", "last", "--json").stdout)
    promised = "id state reason profile step max_steps epoch attempt directory checkpoints pids ledger metrics"
    assert set(promised.split()) <= set(shown)
    assert shown["pids"] == [process.pid for process in engine.processes(engine.client.request("runs").runs[0])]

    changed = cockpit("set", run_id, "training.warmup=3", "--json")
    assert json.loads(changed.stdout)["state"] == "running"
    assert json.loads(cockpit("pause", run_id, "--json").stdout)["run"] == run_id
    wait_for(lambda: json.loads(cockpit("show", run_id, "--json").stdout)["state"] == "paused")
    assert cockpit("continue", run_id, "--skip", "--rollback").returncode == 2
    assert cockpit("continue", run_id, "--skip").returncode == 0
    stopped = json.loads(cockpit("stop", run_id, "--json").stdout)
    assert stopped["state"] == "stopped"

    shown = json.loads(cockpit("show", run_id, "--json").stdout)
    assert [line["name"] for line in shown["ledger"]][:1] == ["training.warmup"]
    assert [line["new"] for line in shown["ledger"] if line["name"] == "continue"] == ["skip"]
    assert [Path(each["path"]).is_absolute() for each in shown["checkpoints"]] == [True]
    assert [run["id"] for run in json.loads(cockpit("runs", "--state", "stopped", "--json").stdout)] == [run_id]
    assert cockpit("stop", run_id).returncode == 2, "it has ended"


def test_resume_supersedes_metrics_and_logs_follow_to_the_end(cockpit: Cockpit, bare_home: Home) -> None:
    run_id = cockpit("train", *scripted(4), "--detach").stdout.strip()
    logs = cockpit("logs", run_id, "--follow")
    assert logs.returncode == 0
    assert json.loads(cockpit("runs", "--json").stdout)[0]["state"] == "completed"

    resumed = cockpit("resume", f"{run_id}@4", "--set", "training.max_steps=6", "--json")
    assert json.loads(resumed.stdout)["step"] == 6
    lines = [
        json.loads(line) for line in cockpit("metrics", run_id, "--name", "train/loss", "--json").stdout.splitlines()
    ]
    assert [(line["step"], line["attempt"]) for line in lines] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert set(lines[0]) == {"step", "name", "value", "time", "attempt"}

    assert cockpit("resume", f"{run_id}@99").returncode == 2
    assert cockpit("delete", run_id).returncode == 0
    assert not bare_home.run(run_id).path.exists()


def test_prepare_prepares_and_nothing_more(cockpit: Cockpit) -> None:
    document = json.loads(cockpit("prepare", "triples-qlora", "--json").stdout)
    assert (document["state"], document["step"], document["prepared"]["rows"]) == ("completed", 0, 1)


def test_ctrl_c_leaves_the_run_alone(bare_home: Home, engine: Engine) -> None:
    follower = subprocess.Popen(
        command("train", *scripted(10_000)), env=environment(bare_home), stderr=subprocess.PIPE, text=True
    )
    run = wait_for(lambda: engine.client.request("runs").runs)[0]
    engine.wait_step(run, 3)
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=10)
    assert follower.returncode == 130
    assert f"cockpit stop {run.id}" in said
    now = engine.show(run).run.step
    assert engine.wait_step(run, now + 5).state == "running"


def test_a_terminal_gets_a_bar(bare_home: Home) -> None:
    ours, theirs = pty.openpty()
    follower = subprocess.Popen(
        command("train", *scripted(30, 0.05)),
        env=environment(bare_home, TERM="xterm-256color"),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    drawn = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            drawn += os.read(ours, 4096)
        except OSError:  # the other end is closed: it has left
            break
    os.close(ours)
    assert follower.wait(5) == 0
    text = drawn.decode()
    assert "completed" in text
    assert "30/30" in text
    assert "loss" in text


def test_the_engine_refuses_to_end_while_a_job_lives(cockpit: Cockpit, engine: Engine) -> None:
    run_id = cockpit("train", *scripted(10_000), "--detach").stdout.strip()
    wait_for(lambda: engine.client.request("runs").runs[0].step)
    status = json.loads(cockpit("engine", "status", "--json").stdout)
    assert {"pid", "protocol", "home", "uptime", "jobs"} <= set(status)
    assert status["jobs"] == [run_id]
    refused = cockpit("engine", "stop")
    assert refused.returncode == 2
    assert run_id in refused.stderr
    assert cockpit("engine", "stop", "--force").returncode == 0
    assert json.loads(cockpit("metrics", run_id, "--json").stdout.splitlines()[0])["step"] == 1, "no engine is needed"


def test_ids_are_never_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for width in ("40", "80"):
        monkeypatch.setenv("COLUMNS", width)
        ids = [f"triples-thought-graph-pipeline-resource-limited-1121-0526-{number:04d}" for number in range(3)]
        output.table(("RUN", "STATE", "STEP", "BASE"), [(run, "completed", "12/12", "smollm2" * 6) for run in ids])
        written = capsys.readouterr().out
        assert all(run in written for run in ids)
        output.table(("PLACE", "RUN", "WAITS FOR"), [("1", run, f"waits for {ids[0]}") for run in ids], names=1)
        written = capsys.readouterr().out
        assert all(run in written for run in ids) and "…" not in written


class Typed(io.StringIO):
    """What somebody types on a terminal."""

    def isatty(self) -> bool:
        return True


def test_delete_shows_what_is_meant_and_asks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = engine.submit(steps=2, pace=0.001)
    engine.wait(run, states.COMPLETED)
    delete, folder = ["--home", str(engine.home.root), "delete"], engine.home.run(run.id).path
    assert main([*delete, "last"]) == 2, "without a terminal a prefix is not enough"
    assert f"last means {run.id}" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for typed in ("n\n", "\n", ""):
        monkeypatch.setattr("sys.stdin", Typed(typed))
        assert main([*delete, run.id[:12]]) == 1
        told = capsys.readouterr().err
        assert run.id in told and "Delete it permanently?" in told and "is kept" in told
    assert folder.exists()
    monkeypatch.setattr("sys.stdin", Typed("y\n"))
    assert main([*delete, run.id[:12]]) == 0 and not folder.exists()
    second = engine.submit(steps=2, pace=0.001)
    engine.wait(second, states.COMPLETED)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main([*delete, "last", "--yes"]) == 0
