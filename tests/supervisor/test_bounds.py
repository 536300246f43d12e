"""Whatever comes over its sockets, and however many clients come, the engine goes on within bounds."""

from __future__ import annotations

import os
import random
import resource
import socket
import time
from collections.abc import Iterator

import msgspec
import psutil
import pytest
import zmq

from engine.protocol import states, wire
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import OPERATIONS, ProblemError, Request, SeriesQuery
from tests.scripted.bench import Engine, wait_for

SEED = 20


@pytest.fixture
def connection(engine: Engine) -> wire.Connection:
    found = wire.read_connection(engine.home)
    assert found is not None
    return found


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def dealer(context: zmq.Context, address: str) -> zmq.Socket[bytes]:
    made = context.socket(zmq.DEALER)
    made.linger = 0
    made.connect(address)
    return made


def is_let_in(home: Home) -> bool:
    try:
        with Client(home, start=False) as client:
            return bool(client.request("hello").pid)
    except ProblemError as error:
        assert error.problem.code == "engine.full"
        return False


def some_frames(random: random.Random) -> list[bytes]:
    """One message: rubbish, a request with rubbish in it, nested too deep, or with too many frames."""
    operation = random.choice([*OPERATIONS, "levitate", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
    kinds = [
        lambda: random.randbytes(random.choice([0, 1, 7, 300])),
        lambda: msgspec.msgpack.encode(random.choice([None, 7, [], {}, {"id": 1}, {"id": "x", "operation": 3}])),
        lambda: b"\x91" * 100_000,
        lambda: b"\x83\xa2id\xa1x\xa9operation\xa4runs\xa4body" + b"\x81\xa1x" * 20_000 + b"\xc0",
        lambda: b"\x82\xa2id\xa3\xff\xfe\xfd\xa9operation\xa4runs",
        lambda: wire.encode(
            Request(id="x", operation=operation, body=msgspec.Raw(msgspec.msgpack.encode(random.choice(BODIES))))
        ),
    ]
    # shutdown would be obeyed
    frames = [random.choice(kinds)() for _ in range(random.choice([1, 1, 1, 2, 3, 9]))]
    return [frame for frame in frames if b"shutdown" not in frame] or [b""]


BODIES: list[object] = [
    *({}, [], 7, "text", {"run": "none"}, {"run": 7}, {"run": "x" * 70_000}, {"run": "\x00/../"}),
    *({"position": -(2**62)}, {"run": "none", "changes": {"": {"": []}}}, {"profile": ": : :"}, {"kind": "\ud7ff"}),
    *({"profile": "a: &a [*a]"}, {"service": "x", "request": "y", "question": "z", "arguments": {}}, {"points": 2**62}),
]


def test_a_message_of_three_frames_is_ignored(engine: Engine, connection: wire.Connection, context) -> None:
    senders = [dealer(context, address) for address in (connection.control, connection.workers)]
    for sender in senders:
        for frames in ([b"a", b"b", b"c"], [b"", b""], [b""] * 50):
            sender.send_multipart(frames)
    wait_for(lambda: engine.client.request("hello").ignored == 6, what="all counted")


def test_random_frames_do_no_harm(engine: Engine, connection: wire.Connection, context) -> None:
    generator = random.Random(SEED)
    run = engine.submit(steps=100_000)
    engine.wait_step(run, 2)
    senders = [dealer(context, connection.control), dealer(context, connection.workers)]
    for _ in range(1500):
        generator.choice(senders).send_multipart(some_frames(generator))
    for path in (connection.control, connection.workers):
        for _ in range(50):  # and what is not even ZeroMQ
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(path.removeprefix("ipc://"))
                raw.sendall(generator.randbytes(generator.choice([1, 10, 64, 4000])))
    assert engine.client.request("hello").pid == engine.process.pid
    wait_for(lambda: engine.client.request("hello").ignored > 100, what="ignored messages")
    step = engine.show(run).run.step
    engine.wait_step(run, step + 5)
    assert engine.show(run).run.state == states.RUNNING
    for process in engine.processes(run):
        process.kill()


@pytest.mark.parametrize("limit", [64, 100])
def test_more_clients_than_files_may_be_open_end_nothing(bare_home, monkeypatch, context, limit: int) -> None:
    import subprocess

    start = subprocess.Popen
    lower = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))}
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **more: start(*arguments, **more, **lower))
    engine = Engine(bare_home, cold=True)
    monkeypatch.undo()
    try:
        found = wire.read_connection(bare_home)
        assert found is not None
        crowd = [dealer(context, found.control) for _ in range(3 * limit)]
        for each in crowd:
            each.send(wire.encode(Request(id="x", operation="attach")))
        time.sleep(1.5)
        assert engine.process.poll() is None
        assert engine.client.request("hello").pid == engine.process.pid, "who was there already is served"
        with pytest.raises(ProblemError) as refused:
            Client(bare_home)
        assert refused.value.problem.code == "engine.full"
        run = engine.submit(steps=3)
        assert engine.wait(run, states.COMPLETED).step == 3, "jobs start and end meanwhile"
        for each in crowd:
            each.close(linger=0)
        wait_for(lambda: is_let_in(bare_home), 5, "room for another client")
    finally:
        engine.close()
        assert engine.process.returncode == 0


def test_a_client_with_more_than_1024_open_files_is_let_in(engine: Engine) -> None:
    """select() refuses descriptors from 1024 on: an app that shows many runs on many hosts has as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"this process may open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] < 1024:
            held.append(os.dup(held[0]))
        with Client(engine.home) as client:
            assert client.request("hello").pid == engine.process.pid
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_does_not_read_costs_a_bounded_number_of_bytes(
    engine: Engine, connection: wire.Connection, context
) -> None:
    """1,000 replies of more than a megabyte; the client reads none of them."""
    run = engine.submit(steps=30_000, pace=1e-9)
    engine.wait(run, states.COMPLETED, seconds=60)
    query = SeriesQuery(run=run.id, names=["train/loss"], points=30_000)
    size = len(wire.encode(engine.client.request("series", query)))
    assert size > 500_000
    before = psutil.Process(engine.process.pid).memory_info().rss
    deaf = context.socket(zmq.DEALER)
    deaf.linger, deaf.rcvhwm, deaf.sndhwm = 0, 1, 3000
    deaf.connect(connection.control)
    request = Request(id="x", operation="series", body=wire.encode_raw(query))
    for _ in range(1000):
        deaf.send(wire.encode(request))
    most, quiet = 0, time.monotonic()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and time.monotonic() - quiet < 3:
        rss = psutil.Process(engine.process.pid).memory_info().rss - before
        if rss > most:
            most, quiet = rss, time.monotonic()
        assert engine.client.request("hello").pid == engine.process.pid
        time.sleep(0.1)
    assert most < 300e6, f"{most / 1e6:.0f} MB for replies of {size / 1e6:.1f} MB"
    assert engine.process.poll() is None
