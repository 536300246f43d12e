"""What passes a door: every byte in order, both ways, however slowly it is read; and nobody for whom there is no
room."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.protocol.sockets import FULL
from engine.supervisor.door import CHUNK, FILES, Door
from tests.scripted.bench import wait_for


@pytest.fixture
def inner() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0door-{uuid.uuid4().hex}")
        listener.listen(64)
        yield listener


@pytest.fixture
def door(inner: socket.socket, tmp_path: Path) -> Iterator[Door]:
    door = Door()
    door.open("control", tmp_path / "door", inner.getsockname().decode())
    yield door
    door.stop()
    assert not door._thread.is_alive()


def enter(path: Path, inner: socket.socket) -> tuple[socket.socket, socket.socket]:
    outside = socket.socket(socket.AF_UNIX)
    outside.settimeout(10)
    outside.connect(str(path))
    inside = inner.accept()[0]
    inside.settimeout(10)
    return outside, inside


def pour(sender: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        sender.sendall(data)
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def drink(receiver: socket.socket, generator: random.Random) -> bytes:
    taken = b""
    while data := receiver.recv(generator.choice([1, 100, 5000, 1 << 20])):
        taken += data
    return taken


@pytest.mark.parametrize("seed", range(6))
def test_every_byte_comes_through_and_then_the_end(door: Door, inner: socket.socket, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    for size in (0, 1, CHUNK, 5 * CHUNK + 17, 3_000_000):
        data = generator.randbytes(size)
        pair = enter(tmp_path / "door", inner)
        sender, receiver = pair if seed % 2 else pair[::-1]
        thread = pour(sender, data)
        assert hashlib.sha256(drink(receiver, generator)).digest() == hashlib.sha256(data).digest(), size
        thread.join()
        receiver.close()
    wait_for(lambda: door._inside == 0, 5, "everybody has left")


def test_who_does_not_read_is_not_read_for(door: Door, inner: socket.socket, tmp_path: Path) -> None:
    outside, inside = enter(tmp_path / "door", inner)
    inside.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            sent += inside.send(b"x" * CHUNK)
    assert sent < 3_000_000, "only what the kernel holds, and one part here"
    outside.close()
    inside.close()


def test_who_came_by_an_earlier_file_stays(door: Door, inner: socket.socket, tmp_path: Path) -> None:
    outside, inside = enter(tmp_path / "door", inner)
    (tmp_path / "door").unlink()
    door.open("control", tmp_path / "other", inner.getsockname().decode())
    outside.sendall(b"still here")
    assert inside.recv(100) == b"still here"
    other, _ = enter(tmp_path / "other", inner)
    for each in (outside, inside, other):
        each.close()


def test_nobody_is_let_in_for_whom_there_is_no_room(inner: socket.socket, tmp_path: Path) -> None:
    door = Door()
    room = 5
    door._limit = door._others + door._reserve + room * FILES
    door.open("control", tmp_path / "door", inner.getsockname().decode())
    inside = [enter(tmp_path / "door", inner) for _ in range(room)]
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as refused:
            refused.settimeout(10)
            refused.connect(str(tmp_path / "door"))
            assert refused.recv(10) == FULL and refused.recv(10) == b""
    for pair in inside[:2]:
        pair[0].close()
        pair[1].close()
    wait_for(lambda: door._inside == room - 2, 5, "two have left")
    inside[2:] += [enter(tmp_path / "door", inner) for _ in range(2)]
    for pair in inside[2:]:
        pair[0].close()
        pair[1].close()
    door.stop()
