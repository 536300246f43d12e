"""`cockpit generate` with a real worker and a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from engine.protocol.client import Client
from engine.protocol.home import Home
from tests.cli.conftest import Cockpit, command, environment
from tests.training.harness import make_model

pytestmark = pytest.mark.slow


def test_replies_to_a_file(cockpit: Cockpit, bare_home: Home, tmp_path: Path) -> None:
    make_model(bare_home.models / "tiny")
    (tmp_path / "in.jsonl").write_text('{"text": "w1 w2", "id": 7}\n{"prompt": "w3"}\n')
    sampling = ("--max-new-tokens", "5", "--preset", "chat", "--seed", "1")
    made = cockpit("generate", "tiny", "--input", "in.jsonl", "--output", "out.jsonl", *sampling, "--json", seconds=120)
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert set(document) == {"rows", "seconds", "tokens", "failed"}
    assert (document["rows"], document["tokens"]) == (2, sum(row["tokens"] for row in rows))
    assert rows[0]["id"] == 7 and rows[1]["prompt"] == "w3" and all(isinstance(row["reply"], str) for row in rows)
    refused = cockpit("generate", "tiny", "--input", "none.txt", "--output", "out.jsonl", seconds=120)
    assert refused.returncode == 2 and "there is no file" in refused.stderr


def test_ctrl_c_and_kill_keep_what_is_done(cockpit: Cockpit, bare_home: Home, tmp_path: Path) -> None:
    make_model(bare_home.models / "tiny")
    (tmp_path / "in.txt").write_text("".join(f"w{row % 60} w{row % 7}\n" for row in range(160)))
    arguments = ("generate", "tiny", "--input", "in.txt", "--max-new-tokens", "60", "--batch-size", "4", "--output")
    kept = tmp_path / "out.jsonl.partial" / "replies.jsonl"
    # Python ends itself by SIGINT (a shell sees 130) if that came while `exec` ran a string, as dataclasses do.
    for how, statuses in ((signal.SIGKILL, (-9,)), (signal.SIGINT, (130, -2))):
        before = kept.read_bytes().count(b"\n") if kept.exists() else 0
        process = subprocess.Popen(command(*arguments, "out.jsonl"), env=environment(bare_home), cwd=tmp_path)
        deadline = time.monotonic() + 100
        while not kept.exists() or kept.read_bytes().count(b"\n") < before + 8:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(how)
        process.wait(30)
        assert process.returncode in statuses and not (tmp_path / "out.jsonl").exists()
    finished = cockpit(*arguments, "out.jsonl", seconds=200)
    assert finished.returncode == 0 and "from an earlier call" in finished.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == (tmp_path / "in.txt").read_text().splitlines()
    with Client(bare_home, start=False) as client:
        assert [service.pid for service in client.request("hello").services if service.state == "busy"] == []
