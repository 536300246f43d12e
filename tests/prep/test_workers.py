"""The prepare stage and the data service as real processes on a real socket."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from engine.config.profile import Profile
from engine.protocol import journal, wire
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Answered, CancelInstruction, Instruction
from tests.prep.conftest import ProfileOver, chat
from tests.training import warm

pytestmark = pytest.mark.slow

GOOD = [chat(f"question {number}", f"answer {number}") for number in range(10)]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[zmq.Socket[bytes]]:
    """The supervisor's end of the line."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(f"ipc://{tmp_path}/line")
    yield socket
    context.destroy(linger=0)


def start(home: Home, kind: str, job: str, socket: zmq.Socket[bytes]) -> Any:
    address = socket.last_endpoint.decode().rstrip("\0")
    arguments = ["--home", str(home.root), "--job", job, "--attempt", "1", "--address", address]
    return warm.start([f"engine.workers.{kind}", *arguments], 1, dict(os.environ), home.root / f"{kind}.log")


def submitted(home: Home, profile: Profile) -> RunDirectory:
    """A run directory as the supervisor makes it."""
    run = home.run("run-1")
    run.path.mkdir(parents=True)
    run.profile.write_text(profile.to_yaml())
    (run.path / "job.json").write_text(json.dumps({"kind": "train", "directory": str(profile.directory)}))
    return run


def test_the_prepare_stage_writes_phases_and_prepared_json_and_no_end(
    home: Home, profile_over: ProfileOver, supervisor: zmq.Socket[bytes]
) -> None:
    rows = [*GOOD, "{oops", chat("q " * 200, "a"), chat("q", "a " * 200)]
    run = submitted(home, profile_over(rows, max_rejected=0.1))
    assert start(home, "prepare", run.id, supervisor).wait() == 0
    entries = [entry for entry, _ in journal.read(run.events)]
    assert [entry.message for entry in entries if isinstance(entry, journal.Warn)] == [
        "1 bad rows were dropped",
        "1 rows of train were dropped: their reply starts beyond data.max_length",
        "1 rows of train are truncated",
    ]
    assert all(isinstance(entry, journal.Phase | journal.Warn) for entry in entries)
    assert [entry.name for entry in entries if isinstance(entry, journal.Phase)][-1] == "tokenising"
    assert json.loads(run.prepared.read_bytes())["rows"] == 11


def test_a_failure_is_the_runs_end(home: Home, profile_over: ProfileOver, supervisor: zmq.Socket[bytes]) -> None:
    run = submitted(home, profile_over(["{oops", *GOOD]))
    assert start(home, "prepare", run.id, supervisor).wait() == 1
    end = list(journal.read(run.events))[-1][0]
    assert isinstance(end, journal.End) and end.status == "failed" and end.problem is not None
    assert end.problem.title == "1 of 11 rows of data.train are bad" and "rows.jsonl:1" in end.problem.cause
    assert not run.prepared.exists()


Ask = Callable[..., Answered]


@pytest.fixture
def ask(home: Home, supervisor: zmq.Socket[bytes]) -> Iterator[Ask]:
    """`ask(question, **arguments)`: the data service's answer."""
    process = start(home, "data", "data-1", supervisor)
    supervisor.rcvtimeo = 60_000
    identity = supervisor.recv_multipart()[0]

    def question(name: str, cancel: bool = False, **arguments: Any) -> Answered:
        asked = Instruction(id=name, name=name, arguments={"request": f"r-{name}", **arguments})
        if cancel:
            supervisor.send_multipart([identity, msgspec.msgpack.encode(CancelInstruction(request=f"r-{name}"))])
        supervisor.send_multipart([identity, msgspec.msgpack.encode(asked)])
        while True:
            message = wire.decode_from_worker(supervisor.recv_multipart()[1])
            if isinstance(message, Answered):
                return message

    yield question
    process.kill()
    process.wait()


def test_the_data_service(ask: Ask, profile_over: ProfileOver, tmp_path: Path) -> None:
    profile = profile_over([*GOOD[:2], "{oops", *GOOD[2:], chat("emoji 🎉", "多语言 🎉")], GOOD[:3])
    opened = ask("open", profile=profile.to_yaml(), directory=str(tmp_path)).result
    assert [
        (each["source"], each["format"], each["rows"], each["rejected"], each["part"]) for each in opened["sources"]
    ] == [
        ("rows.jsonl", "messages", 11, 1, "train"),
        ("held-rows.jsonl", "messages", 3, 0, "validation"),
    ]
    assert (opened["rows"], opened["columns"]) == (14, ["messages"])
    (problem,) = opened["problems"]
    assert problem["line"] == 3 and problem["reason"].startswith("not JSON")

    shown = ask("rows", part="train", start=1, count=2).result
    assert shown["total"] == 11 and [row["index"] for row in shown["rows"]] == [1, 2]
    assert [row["messages"] for row in shown["rows"]] == [each["messages"] for each in GOOD[1:3]]
    assert json.loads(shown["rows"][0]["raw"]) == GOOD[1]

    row = ask("tokens", part="train", index=10).result
    text = "".join(piece["text"] for piece in row["pieces"])
    assert text.endswith("<|im_start|>user\nemoji 🎉<|im_end|>\n<|im_start|>assistant\n多语言 🎉<|im_end|>\n")
    assert "".join(piece["text"] for piece in row["pieces"] if piece["trained"]) == "多语言 🎉<|im_end|>"
    assert (row["tokens"], row["trained"]) == (len(row["pieces"]), sum(piece["trained"] for piece in row["pieces"]))

    stats = ask("stats", part="train").result
    assert stats["rows"] == 11 and stats["max"] == max(stats["max"], row["tokens"]) and stats["truncated"] == 0

    for name, arguments in (("rows", {"part": "other"}), ("tokens", {"index": 99}), ("fly", {}), ("rows", {})):
        answer = ask(name, **arguments)
        assert answer.problem is not None and answer.problem.title == "This cannot be answered"
    cancelled = ask("open", cancel=True, profile=profile.to_yaml(), directory=str(tmp_path))
    assert cancelled.problem is not None and cancelled.problem.title == "Cancelled"
    closed = ask("rows", part="train", start=0, count=1)
    assert closed.problem is not None and closed.problem.title == "No profile is open"
