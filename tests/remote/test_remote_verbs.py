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

from cockpit import remote_names
from cockpit.cli import VERBS, build_parser, choose_function, main
from cockpit.verbs import remote as far_module
from cockpit.verbs.output import show_problem
from cockpit.verbs.remote_arguments import find_profile_argument, reads_stdin, remove_on
from engine.protocol.messages import Problem, Run, Stop
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


def test_a_log_goes_on_where_the_link_was_cut(far: Loopback, alpha: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line comes once, however the link is cut: first ssh is killed, then nothing comes any more."""
    monkeypatch.setenv("COCKPIT_SSH", f"{far.ssh} -o ServerAliveInterval=1 -o ServerAliveCountMax=1")
    run = alpha.submit(steps=10_000)
    log = alpha.home.run(run.id).log
    alpha.wait_step(run, 1)
    lines = [f"line {number} 抽取三元组" for number in range(60)]
    written, seen = iter(lines), []

    def write() -> None:
        with open(log, "a", encoding="utf-8") as file:
            file.writelines(f"{next(written)}\n" for _ in range(10))

    def read_to(line: str) -> None:
        while line not in seen:
            seen.append(verb.stdout.readline().rstrip("\n"))  # type: ignore[union-attr]

    write()
    verb = start("--on", "alpha", "logs", run.id, "--follow")
    read_to(lines[9])
    write()
    [client] = [each for each in far.find_clients() if psutil.Process(verb.pid) in each.parents()]
    client.kill()
    write()
    read_to(lines[29])
    write()
    suspended = far.find_sessions()
    for each in suspended:
        each.suspend()
    write()
    read_to(lines[49])
    write()
    read_to(lines[59])
    alpha.client.request("stop", Stop(run=run.id, now=True))
    out, err = verb.communicate(timeout=20)
    for each in suspended:
        each.kill()
    seen += out.splitlines()
    assert verb.returncode == 0
    assert [line for line in seen if line.startswith("line ")] == lines
    assert err.count("The link to alpha is lost") == 2


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
    assert "closed" in json.loads(out.splitlines()[-1])["error"]["cause"]
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
    (["--on", "alpha", "stop", "last", "--on", "."], "remote.one_host", "name one"),
    (["--on=gpu7:", "runs"], "remote.host_invalid", "user@host"),
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


# ── what needs no sshd ─────────────────────────────────────────────────────────────────────────────────────────────

PROFILES = {
    "behind a flag": ["train", "--detach", "mine.yaml"],
    "before a flag": ["train", "mine.yaml", "--detach"],
    "named like the verb": ["train", "train"],
    "named like a value": ["train", "--set", "train", "train"],
    "of a group": ["--json", "profile", "check", "check"],
    "behind dashes": ["train", "--", "mine.yaml"],
    "of a forecast": ["forecast", "--cards", "8", "8"],
}


@pytest.mark.parametrize("name", PROFILES)
def test_the_profile_is_found_on_the_command_line(name: str) -> None:
    arguments = PROFILES[name]
    options = build_parser().parse_args(arguments)
    options.on, options.arguments = ["alpha"], arguments
    assert choose_function(options) == "remote:run"
    expected = max(at for at, each in enumerate(arguments) if each == options.profile)
    assert find_profile_argument(arguments, options) == expected


@pytest.mark.parametrize(
    ("arguments", "reads"),
    [
        (["stop", "last"], False),
        (["chat", "last"], True),
        (["chat", "last", "--prompt", "x"], False),
        (["generate", "last", "--input", "-", "--output", "o"], True),
        (["generate", "last", "--input=/dev/stdin", "--output", "o"], True),
    ],
)
def test_only_a_verb_that_reads_takes_stdin(arguments: list[str], reads: bool) -> None:
    assert reads_stdin(build_parser().parse_args(arguments), arguments) is reads


def fake_ssh(folder: Path, *lines: str) -> str:
    """An ssh that runs the command line here, in its own place: a signal that ends that ends ssh."""
    script = folder / "ssh.sh"
    script.write_text("\n".join(("#!/bin/sh", *lines, 'for last; do :; done; eval "exec $last"')) + "\n")
    script.chmod(0o755)
    return str(script)


def fake_cockpit(folder: Path, *lines: str) -> str:
    script = folder / "cockpit.sh"
    script.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COCKPIT_SSH", fake_ssh(tmp_path))
    monkeypatch.setenv("COCKPIT_REMOTE", str(tmp_path / "cockpit.sh"))
    monkeypatch.setattr(remote_names, "command", "cockpit")
    return tmp_path


def call(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cockpit.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, input=given, capture_output=True, text=True, timeout=20)


def test_stdin_is_for_the_profile_and_for_nothing_else(faked: Path) -> None:
    fake_cockpit(faked, "cat; echo :", 'echo "$@"')
    assert (
        call("--on", "there", "train", "-", "--detach", given="name: mine").stdout == "name: mine:\ntrain - --detach\n"
    )
    assert call("--on", "there", "stop", "r", given="next run").stdout == ":\nstop r\n"


def test_a_verb_that_a_signal_ends_there_is_no_lost_link(faked: Path, capsys: Output) -> None:
    fake_cockpit(faked, "kill -9 $$")
    assert main(["--on", "there", "runs"]) == 128 + 9


@pytest.mark.parametrize(
    ("words", "tries"),
    [("Host key verification failed.", 1), ("ada@there: Permission denied (publickey).", 1), ("Broken pipe", 3)],
)
def test_what_fails_in_the_same_way_is_not_tried_again(
    words: str, tries: int, faked: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call finds the run; then ssh fails, and says why only in its own log."""
    fake_cockpit(faked, """echo '{"id": "r"}'""")
    counter = faked / "tries"
    monkeypatch.setenv(
        "COCKPIT_SSH",
        fake_ssh(
            faked,
            f'if [ -e {faked}/second ]; then while [ "$1" != -E ]; do shift; done',
            f'echo "{words}" >>"$2"; echo >>{counter}; [ $(wc -l <{counter}) -lt 3 ] || exit 0; exit 255; fi',
            f"touch {faked}/second",
        ),
    )
    monkeypatch.setattr(far_module, "FIRST_WAIT", 0.01)
    assert main(["--on", "there", "--json", "watch", "r"]) == (2 if tries == 1 else 0)
    assert len(counter.read_text()) == tries
    if tries == 1:
        assert error_of(capsys)["cause"] == words


def test_a_link_that_is_cut_within_a_character(capsys: Output) -> None:
    text = "抽取".encode()
    whole = far_module._Done()
    for done, sent in ((whole, text[:4]), (far_module._Done(), text)):
        read, write = os.pipe()
        os.write(write, sent)
        os.close(write)
        with open(read, "rb") as stream:
            far_module._copy_output(stream, done, False, whole.copied)
    assert capsys.readouterr().out == "抽取"


def test_suggested_commands_name_host_and_home(faked: Path, capsys: Output) -> None:
    assert {verb.name for verb in VERBS} == set(remote_names.VERBS)
    assert remote_names.name_in("`cockpit stop r`, or the cockpit there", "cockpit --on a") == (
        "`cockpit --on a stop r`, or the cockpit there"
    )
    remote_names.read_command("/my home")
    show_problem(Problem(title="No", hint="cockpit stop r"))
    assert "→ cockpit --home '/my home' stop r" in capsys.readouterr().err
    fake_cockpit(faked, 'echo "$COCKPIT_CALLED"')
    assert main(["--on", "there:" + os.environ["COCKPIT_REMOTE"], "--home", "/h", "runs"]) == 0
    assert capsys.readouterr().out == f"cockpit --on there:{os.environ['COCKPIT_REMOTE']} --home /h\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_watched_worker_ends_with_its_verb(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom cockpit.verbs.tools import _run_watched\n"
        "_run_watched([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    verb = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert verb.stdout is not None
    worker = psutil.Process(int(verb.stdout.readline()))
    verb.send_signal(number)
    verb.wait(10)
    psutil.wait_procs([worker], 5)
    assert not worker.is_running()
