"""The protocol on a real socket: versions, unknown operations, gaps, private directories."""

from __future__ import annotations

import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from engine.protocol import client as client_module
from engine.protocol import sockets, wire
from engine.protocol.client import Client, Tracker
from engine.protocol.home import Home
from engine.protocol.messages import Event, Problem, ProblemError, Reply, Request, Snapshot
from tests.scripted.bench import Engine


def control(engine: Engine) -> str:
    connection = wire.read_connection(engine.home)
    assert connection is not None
    return connection.control


@pytest.fixture
def raw_socket(engine: Engine) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(control(engine))
    yield socket
    context.destroy(linger=0)


def exchange(socket: zmq.Socket[bytes], request: Request) -> Reply:
    socket.send(wire.encode(request))
    assert socket.poll(5000)
    kind, payload = socket.recv_multipart()
    assert kind == wire.REPLY
    return wire.decode(payload, Reply)


def test_a_cockpit_of_another_version_is_refused(raw_socket: zmq.Socket[bytes]) -> None:
    reply = exchange(raw_socket, Request(id="1", operation="hello", protocol=99))
    assert reply.problem is not None and "different protocols" in reply.problem.title


def test_an_engine_of_another_version_says_which_side_to_restart(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PROTOCOL", 2)
    monkeypatch.setattr(wire, "PROTOCOL", 2)
    with Client(engine.home) as late, pytest.raises(ProblemError, match="here the engine"):
        late.request("hello")


def test_an_unknown_operation_is_an_error_and_unknown_fields_are_not(raw_socket: zmq.Socket[bytes]) -> None:
    unknown = exchange(raw_socket, Request(id="1", operation="levitate"))
    assert unknown.problem is not None and "levitate" in unknown.problem.title
    body = wire.encode_raw({"state": "", "colour": "blue"})  # type: ignore[arg-type]
    assert exchange(raw_socket, Request(id="2", operation="runs", body=body)).problem is None


def test_rubbish_does_not_hurt_the_engine(engine: Engine, raw_socket: zmq.Socket[bytes]) -> None:
    raw_socket.send(b"\xff\x00 rubbish")
    malformed = exchange(raw_socket, Request(id="3", operation="show", body=wire.encode_raw({"run": 7})))  # type: ignore[arg-type]
    assert malformed.problem is not None and "malformed" in malformed.problem.title
    assert engine.client.request("hello").pid == engine.process.pid


def test_sockets_and_files_are_the_owners_alone(engine: Engine) -> None:
    path = Path(control(engine).removeprefix("ipc://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(engine.home.connection.stat().st_mode) == 0o600
    assert stat.S_IMODE(engine.home.registry.stat().st_mode) == 0o600
    assert len(str(path)) <= 107


def test_an_open_socket_directory_is_refused(bare_home: Home) -> None:
    sockets.make_directory(bare_home).chmod(0o755)
    with pytest.raises(ProblemError, match="not private"):
        sockets.make_directory(bare_home)


def test_no_engine_is_a_problem_only_for_a_client_that_starts_none(bare_home: Home) -> None:
    with pytest.raises(ProblemError, match="No engine is running"):
        Client(bare_home, start=False)
    with Client(bare_home) as started:
        assert started.request("hello").home == str(bare_home.root)


def event(session: str, seq: int) -> Event:
    return Event(session=session, seq=seq, time=0.0, body=wire.encode_raw(Problem(title="x")))  # type: ignore[arg-type]


def test_a_tracker_sees_gaps_repeats_and_another_session() -> None:
    session = uuid.uuid4().hex
    tracker = Tracker()
    tracker.start_at(Snapshot(session=session, seq=5, runs=[]))
    assert tracker.accept(event(session, 5)) is None
    assert tracker.accept(event(session, 6)) is True
    assert tracker.accept(event(session, 8)) is False
    assert tracker.accept(event("other", 9)) is False
