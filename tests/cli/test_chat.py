"""`cockpit chat` against a real engine with a scripted chat worker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cockpit.state.chat_tree import ROOT, parse_tree
from engine.protocol.home import Home
from tests.cli.conftest import Cockpit, command, environment
from tests.scripted.bench import Engine, wait_for

pytestmark = pytest.mark.usefixtures("engine")


def test_one_answer_as_text_and_as_json(cockpit: Cockpit, engine: Engine) -> None:
    plain = cockpit("chat", "some-model", "--prompt", "a b c")
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "a b c \n", "")
    asked = cockpit("chat", "some-model", "--prompt", "a b", "--system", "be brief", "--json")
    document = json.loads(asked.stdout)
    assert set(document) == {"reply", "tokens", "seconds", "first_token_seconds"}
    assert document["reply"] == "be brief | a b "
    wait_for(lambda: not engine.client.request("hello").services, what="the end of the chat workers")


def test_a_target_that_is_no_model_is_the_users_mistake(cockpit: Cockpit) -> None:
    answer = cockpit("chat", "broken", "--prompt", "a")
    assert answer.returncode == 2
    assert "broken is no model" in answer.stderr


def test_a_conversation_remembers_until_it_is_cleared(bare_home: Home) -> None:
    said = subprocess.run(
        command("chat", "some-model"),
        env=environment(bare_home),
        input="one\ntwo\n/clear\nthree\nexit\nnever read\n",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert said.returncode == 0
    replies = [line.removeprefix("you> ").strip() for line in said.stdout.splitlines()]
    assert replies[:2] == ["one", "one | one | two"]
    assert replies[2].endswith("three")
    assert "|" not in replies[2]


def test_ctrl_c_cancels_the_reply_and_leaves(bare_home: Home, engine: Engine) -> None:
    talking = subprocess.Popen(
        command("chat", "some-model", "--prompt", "long"), env=environment(bare_home), stdout=subprocess.PIPE
    )
    assert talking.stdout is not None
    assert os.read(talking.stdout.fileno(), 4) == b"more"
    talking.send_signal(signal.SIGINT)
    talking.communicate(timeout=10)
    assert talking.returncode == 130
    wait_for(lambda: not engine.client.request("hello").services, what="the end of the chat worker")


def test_a_run_answers_while_it_trains(cockpit: Cockpit, engine: Engine) -> None:
    run = engine.submit(steps=10_000)
    engine.wait_step(run, 2)
    plain = cockpit("chat", run.id, "--hot", "--prompt", "a b")
    assert (plain.returncode, plain.stdout) == (0, "a b \n")
    assert "delayed training by 0.25 s" in plain.stderr
    document = json.loads(cockpit("chat", "last", "--hot", "--prompt", "a b", "--json").stdout)
    assert document["reply"] == "a b " and document["held_seconds"] == 0.25 and document["last_step"] >= 2
    assert engine.show(run).run.state == "running" and not engine.client.request("hello").services
    assert cockpit("stop", run.id).returncode == 0
    refused = cockpit("chat", run.id, "--hot", "--prompt", "a")
    assert refused.returncode == 2 and f"{run.id} is stopped" in refused.stderr


def typed(home: Home, *lines: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("chat", "some-model"),
        env=environment(home, **more),
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_commands_of_a_conversation(bare_home: Home, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    said = typed(
        bare_home, "/system be brief", "one", "/regenerate", "/tokens", "/perplexity a b c", "/perplexity",
        "/set temperature=0.5 stop='a b'", "/set temperature=", "/set nothing=1", "/set top_k=many", f"/save {kept}",
        "/save short", "clear", "/tokens", "two", f"/load {kept}", "three", "/nope", "quit",
    )  # fmt: skip
    assert said.returncode == 0
    replies = [line.removeprefix("you> ").removeprefix("you> ").strip() for line in said.stdout.splitlines()]
    assert replies[:2] == ["be brief | one", "be brief | one"]
    assert "be brief | two" in said.stdout and "be brief | one | be brief | one | three" in said.stdout
    assert "there is no reply yet" in said.stderr and "give a text: /perplexity TEXT" in said.stderr
    assert (
        "3 tokens · perplexity 11.02" in said.stderr and "' c' 0.09 %, where it expected ' other' 90.5 %" in said.stderr
    )
    assert "4 tokens · perplexity" in said.stderr and "' one' 0.09 %" in said.stderr
    assert "temperature=0.5, stop=['a b']" in said.stderr and "stop=['a b']\n" in said.stderr
    for problem in ("nothing=1: write K=V", "top_k: 'many' is not a number", "there is no command /nope"):
        assert problem in said.stderr
    tree, extra = parse_tree(kept.read_text())
    assert [len(tree.children(parent)) for parent in (ROOT, 0)] == [1, 2], "another reply is a branch"
    assert extra["targets"] == ["some-model"] and extra["settings"] == {"stop": ["a b"]}
    assert (bare_home.chats / "short.json").is_file()


def test_what_cannot_be_asked_is_the_users_mistake(cockpit: Cockpit, tmp_path: Path) -> None:
    for arguments, problem in (
        (("--json-schema", "task"), "--json-schema task needs --task"),
        (("--json-schema", "none.json"), "No such file"),
        (("--json",), "--json needs --prompt"),
    ):
        answer = cockpit("chat", "some-model", *arguments)
        assert answer.returncode == 2 and problem in answer.stderr
    (tmp_path / "bad.json").write_text("{")
    answer = cockpit("chat", "some-model", "--prompt", "a", "--json-schema", "bad.json")
    assert answer.returncode == 2 and "bad.json is not JSON" in answer.stderr


def test_lines_that_are_pasted_together_are_one_question(bare_home: Home) -> None:
    ours, theirs = pty.openpty()
    talking = subprocess.Popen(
        command("chat", "some-model"),
        env=environment(bare_home, TERM="xterm-256color"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = ""

    def read_until(word: str) -> None:
        nonlocal shown
        while word not in shown:
            shown += os.read(ours, 65536).decode(errors="replace")

    read_until("you> ")
    assert "\x1b[?2004h" in shown, "the terminal is asked to mark what is pasted"
    shown = ""
    os.write(ours, b"\x1b[200~first line\nsecond line\nthird line\x1b[201~")
    read_until("third line")
    time.sleep(0.3)
    assert "tok/s" not in shown, "nothing is sent before Enter"
    os.write(ours, b"\r")
    read_until("tok/s")
    os.write(ours, b"exit\r")
    try:
        while piece := os.read(ours, 65536):
            shown += piece.decode(errors="replace")
    except OSError:
        pass  # it has left
    os.close(ours)
    assert talking.wait(10) == 0
    assert shown.count("tok/s") == 1
    assert "first line second line third line" in " ".join(shown.split())
