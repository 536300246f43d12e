"""Encoding of messages, addresses of sockets, and the connection file.

A client has one DEALER socket, connected to the supervisor's ROUTER. Replies and events use the same socket, so that no
event after a snapshot can overtake it or be lost. Workers have one DEALER socket each, connected to a second ROUTER.
The addresses depend only on the home, so that clients and workers find the next supervisor without being told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from engine.protocol.home import Home, write_private
from engine.protocol.messages import (
    PROTOCOL,
    Body,
    CancelInstruction,
    FromWorker,
    Instruction,
    Message,
    Problem,
    ProblemError,
    ToWorker,
)

T = TypeVar("T")

REPLY = b"R"
EVENT = b"E"
"""The first frame of a message from the supervisor to a client."""

_encoder = msgspec.msgpack.Encoder()
_bodies = msgspec.msgpack.Decoder(Body)
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


class Connection(msgspec.Struct, kw_only=True):
    """The content of `engine/<host>/connection.json` while a supervisor runs."""

    pid: int
    start_time: float
    protocol: int
    session: str
    host: str
    control: str
    workers: str


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode a message. Raises msgspec.MsgspecError when the payload is not a `kind`."""
    decoded: T = msgspec.msgpack.decode(payload, type=kind)
    return decoded


def decode_body(payload: bytes | msgspec.Raw) -> Any:
    """Decode the body of an event. Raises msgspec.ValidationError for an unknown type."""
    return _bodies.decode(payload)


def decode_instruction(payload: bytes) -> Instruction | CancelInstruction:
    """Decode a message from the supervisor to a worker. Raises msgspec.MsgspecError."""
    instruction: Instruction | CancelInstruction = _to_worker.decode(payload)
    return instruction


def decode_from_worker(payload: bytes) -> Any:
    """Decode a message from a worker, one of `messages.FromWorker`. Raises msgspec.MsgspecError."""
    return _from_worker.decode(payload)


def encode_raw(message: Message) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(message))


def control_address(home: Home) -> str:
    return f"ipc://{home.sockets / 'control'}"


def workers_address(home: Home) -> str:
    return f"ipc://{home.sockets / 'workers'}"


def make_socket_directory(home: Home) -> Path:
    """Make the sockets' directory, accessible only to its owner. Raises ProblemError when another user owns it or can
    write to it."""
    folder = home.sockets
    for part in (folder.parent, folder):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = part.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ProblemError(
                Problem(
                    code="engine.socket_not_private",
                    title=f"The socket directory {part} is not private",
                    cause=f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}; it must be yours alone (700)",
                    hint=f"chmod 700 {part}, or set XDG_RUNTIME_DIR to a directory of your own",
                )
            )
    return folder


def read_connections(home: Home) -> Iterator[Connection]:
    """The connection files that can be read: that of the home, and the one beside the sockets, which is written where
    the home cannot be."""
    for path in (home.connection, home.sockets / home.connection.name):
        try:
            if path.stat().st_uid == os.getuid():
                yield msgspec.json.decode(path.read_bytes(), type=Connection)
        except (OSError, msgspec.MsgspecError, RecursionError):
            continue


def write_connection(home: Home, connection: Connection) -> Path:
    """Write the connection file, beside the sockets when the home is full or read-only; returns its path."""
    for path in (home.connection, home.sockets / home.connection.name):
        try:
            write_private(path, msgspec.json.encode(connection))
            return path
        except OSError as error:
            refused = error
    raise refused


def start_time(pid: int) -> float:
    """The start time of a process, in seconds since the epoch. Raises psutil.Error when there is no such process."""
    started: float = psutil.Process(pid).create_time()
    return started


def is_alive(pid: int, start_time: float) -> bool:
    """Whether the process with this pid and start time still runs. A zombie does not."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - start_time) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def protocol_mismatch(theirs: int) -> Problem:
    """The problem of peers with different versions. It says which one is older, and how to restart it."""
    older, newer = ("engine", "cockpit") if theirs < PROTOCOL else ("cockpit", "engine")
    mend = (
        "cockpit engine stop, then cockpit engine start; running jobs go on and are adopted"
        if older == "engine"
        else "leave this cockpit and start it again from the installation that the engine was started from"
    )
    return Problem(
        code="engine.protocol_mismatch",
        title="The cockpit and the engine speak different protocols",
        cause=(
            f"the engine speaks version {theirs}, this cockpit version {PROTOCOL}: "
            f"the {older} is older than the {newer}"
        ),
        hint=f"Restart whichever is older, here the {older}: {mend}",
    )
