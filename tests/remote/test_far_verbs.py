"""`cockpit --on HOST VERB` against a real sshd: output and exit status are those of the other side, and a link that is
cut in the middle either comes back or is reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cockpit.cli import main
from cockpit.verbs.far import remove_on
from engine.protocol.messages import Run, Stop
from tests.remote.loopback import Loopback
from tests.scripted.bench import ROOT, Engine, wait_for

Output = pytest.CaptureFixture[str]


def error_of(capsys: Output) -> dict[str, str]:
    error: dict[str, str] = json.loads(capsys.readouterr().out)["error"]
    return error


def start(*arguments: str) -> subprocess.Popen[str]:
    """`cockpit ARGUMENTS` as a shell would run it in the background."""
    command = [sys.executable, "-m", "cockpit.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def find_far(*words: str) -> list[psutil.Process]:
    """The far verbs that have these words on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "cockpit.cli" in line and "--on" not in line and all(word in line for word in words):
            found.append(process)
    return found


def test_runs_and_show_are_those_of_the_far_side(far: Loopback, alpha: Engine, capsys: Output) -> None:
    run = alpha.submit(steps=2)
    alpha.wait(run, "completed")
    assert main(["--on", "alpha", "runs", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert main(["--home", str(alpha.home.root), "runs", "--json"]) == 0
    assert there == json.loads(capsys.readouterr().out)
    assert main(["show", run.id, "--on=alpha"]) == 0
    assert "state       completed" in capsys.readouterr().out
    assert main(["--json", "--on", "alpha", "show", "no-such-run"]) == 2
    assert error_of(capsys)["code"] == "run.not_found"


def test_a_profile_from_here_is_trained_there_and_stopped(
    far: Loopback, alpha: Engine, tmp_path: Path, capsys: Output
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "model: {base: smollm2-135m-instruct}\ndata: {train: [{source: triples/train.jsonl}]}\n"
        "training: {max_steps: 5000, learning_rate: 0.01}\nlogging: {tensorboard: false}\n"
    )
    assert main(["--on", "alpha", "train", str(profile), "--detach", "--set", "training.epochs=2"]) == 0
    told = capsys.readouterr()
    run = told.out.strip()
    assert run.startswith("mine-")
    assert f"{profile} is sent from here" in told.err
    alpha.wait_step(Run(id=run), 2)
    assert main(["--on", "alpha", "stop", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"
    assert main(["--on", "alpha", "watch", run]) == 0
    told = capsys.readouterr()
    assert f"{run} is stopped" in told.out
    assert f"cockpit --on alpha resume {run}" in told.err
    profile.write_text("training: {max_step: 1}\n")
    assert main(["--on", "alpha", "--json", "profile", "check", str(profile)]) == 2
    assert "training.max_step" in {issue["key"] for issue in json.loads(capsys.readouterr().out)["issues"]}


def test_a_run_that_fails_there_has_its_exit_status_here(
    far: Loopback, alpha: Engine, tmp_path: Path, capsys: Output
) -> None:
    profile = tmp_path / "doomed.yaml"
    profile.write_text(
        "model: {base: smollm2-135m-instruct}\ndata: {train: [{source: triples/train.jsonl}]}\n"
        "training: {max_steps: 9, learning_rate: 0.01}\ngeneration: {seed: 3}\nlogging: {tensorboard: false}\n"
    )
    assert main(["--on", "alpha", "--json", "train", str(profile)]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "failed"


def test_a_chat_over_the_link(far: Loopback, alpha: Engine, capsys: Output) -> None:
    assert main(["--on", "alpha", "chat", "model", "--prompt", "said over there", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reply"].strip() == "said over there"


@pytest.mark.parametrize("cut", ["client", "session"])
def test_a_log_goes_on_where_the_link_was_cut(far: Loopback, alpha: Engine, cut: str) -> None:
    """Each line comes once, however often the link is cut."""
    run = alpha.submit(steps=10_000)
    log = alpha.home.run(run.id).log
    alpha.wait_step(run, 1)
    lines = [f"line {number} 抽取三元组" for number in range(60)]
    with open(log, "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines[:20])
    verb = start("--on", "alpha", "logs", run.id, "--follow")
    assert verb.stdout is not None and verb.stderr is not None
    seen = []
    while lines[19] not in seen:
        seen.append(verb.stdout.readline().rstrip("\n"))
    with open(log, "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines[20:40])
    if cut == "client":
        [client] = [each for each in far.find_clients() if psutil.Process(verb.pid) in each.parents()]
        client.kill()
    else:
        far.kill_sessions()
    with open(log, "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines[40:])
    while lines[59] not in seen:
        seen.append(verb.stdout.readline().rstrip("\n"))
    alpha.client.request("stop", Stop(run=run.id, now=True))
    out, err = verb.communicate(timeout=20)
    seen += out.splitlines()
    assert verb.returncode == 0
    assert [line for line in seen if line.startswith("line ")] == lines
    assert "The link to alpha is lost" in err


def test_ctrl_c_ends_the_far_verb_too(far: Loopback, alpha: Engine) -> None:
    run = alpha.submit(steps=10_000)
    alpha.wait_step(run, 1)
    verb = start("--on", "alpha", "watch", run.id)
    wait_for(lambda: find_far("watch", run.id), what="the far verb")
    verb.send_signal(signal.SIGINT)
    _, err = verb.communicate(timeout=20)
    assert verb.returncode == 130
    assert f"cockpit --on alpha watch {run.id}" in err
    wait_for(lambda: not find_far("watch", run.id), what="the end of the far verb")
    assert alpha.show(run).run.state == "running"
    alpha.client.request("stop", Stop(run=run.id, now=True))


def test_a_verb_whose_link_is_cut_says_so(far: Loopback, alpha: Engine) -> None:
    run = alpha.submit(steps=10_000)
    alpha.wait_step(run, 1)
    verb = start("--on", "alpha", "--json", "chat", run.id, "--hot", "--prompt", "long")
    wait_for(lambda: find_far("chat", run.id), what="the far verb")
    far.kill_sessions()
    out, _ = verb.communicate(timeout=20)
    assert verb.returncode == 2
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "remote.link_lost"
    wait_for(lambda: not find_far("chat", run.id), what="the end of the far verb")
    alpha.client.request("stop", Stop(run=run.id, now=True))


def test_a_worker_in_the_foreground_ends_with_its_link(far: Loopback, alpha: Engine) -> None:
    def find_workers() -> list[psutil.Process]:
        home = str(alpha.home.root)
        every = psutil.process_iter(["cmdline"])
        return [each for each in every if {"engine.workers.doctor", home} <= set(each.info["cmdline"] or [])]

    verb = start("--on", "alpha", "doctor", "--json")
    wait_for(find_workers, what="the doctor")
    far.kill_sessions()
    out, _ = verb.communicate(timeout=20)
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "remote.link_lost"
    wait_for(lambda: not find_workers(), what="the end of the doctor")


REFUSED: list[tuple[list[str], str, str]] = [
    (["--on", "alpha", "serve", "last"], "remote.verb_refused", "--detach; then `ssh -L 8000:127.0.0.1:8000 alpha`"),
    (["--on", "alpha", "engine", "connect"], "remote.verb_refused", "engine start"),
    (["--on", "alpha", "--on", "beta", "runs"], "remote.one_host", "name one"),
    (["--on", "alpha", "runs", "--on", "beta"], "remote.one_host", "name one"),
    (["--on=-oProxyCommand=touch", "runs"], "remote.host_invalid", "user@host"),
    (["--on", "two words", "runs"], "remote.host_invalid", "user@host"),
    (["--on", "alpha:/no/such/cockpit", "runs"], "remote.no_cockpit", "COCKPIT_REMOTE"),
    (["--on", "stranger", "logs", "last", "--follow"], "remote.ssh_failed", "in a terminal"),
    (["--on", "nowhere", "runs"], "remote.link_lost", "cockpit --on nowhere runs"),
]


@pytest.mark.parametrize(("arguments", "code", "hint"), REFUSED, ids=[" ".join(each[0][1:]) for each in REFUSED])
def test_what_cannot_be_is_refused_by_name(
    far: Loopback, arguments: list[str], code: str, hint: str, capsys: Output
) -> None:
    assert main([*arguments, "--json"]) == 2
    error = error_of(capsys)
    assert error["code"] == code
    assert hint in error["hint"]


def test_the_demo_does_not_open_an_app_over_there(far: Loopback, capsys: Output) -> None:
    assert main(["--on", "alpha", "demo"]) == 2
    assert "cockpit --on alpha demo --headless" in capsys.readouterr().err


def test_the_last_line_of_ssh_is_shown(far: Loopback, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--on", "stranger", "runs", "--json"]) == 2
    assert error_of(capsys)["cause"] == "Host key verification failed."
    monkeypatch.setenv("COCKPIT_SSH", "/no/such/ssh -v")
    assert main(["--on", "alpha", "runs", "--json"]) == 2
    assert error_of(capsys)["code"] == "remote.ssh_missing"


@pytest.mark.parametrize("before", [[], ["--json"], ["--on", "alpha"], ["--on=alpha"]])
@pytest.mark.parametrize("after", [[], ["--on", "alpha"], ["--on=alpha", "--json"]])
def test_only_the_host_is_left_out_of_the_command_line(before: list[str], after: list[str]) -> None:
    verb = ["chat", "last", "--prompt", "on"]
    json_before, json_after = (["--json"] if "--json" in part else [] for part in (before, after))
    assert remove_on([*before, *verb, *after]) == [*json_before, *verb, *json_after]


def test_this_host_can_be_named(far: Loopback, tmp_path: Path, capsys: Output) -> None:
    assert main(["--on", ".", "profile", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
