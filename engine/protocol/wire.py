"""Encoding of messages, and the connection file, which says where the supervisor's sockets are.

A client has one DEALER socket, connected to the supervisor's ROUTER. Replies and events use the same socket, so that no
event after a snapshot can overtake it or be lost. Workers have one DEALER socket each, connected to a second ROUTER.
The addresses are in the connection file alone; `sockets` says how they are chosen, and checked before a connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.protocol import sockets
from engine.protocol.home import Home, write_private
from engine.protocol.messages import (
    PROTOCOL,
    Body,
    CancelInstruction,
    FromWorker,
    Instruction,
    Message,
    Problem,
    ToWorker,
)
from engine.protocol.process import is_alive

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
    identity: str = ""
    """With the pid it identifies the process, see `process.read_identity`; empty from older versions."""
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


def read_connection(home: Home) -> Connection | None:
    """The connection of a supervisor that runs, else the first that was recorded; None without a readable record."""
    recorded = list(read_connections(home))
    return next((each for each in recorded if is_running(each)), recorded[0] if recorded else None)


def read_connections(home: Home) -> Iterator[Connection]:
    """The connection files that can be read: that of the home, and one in a spare directory, which is written where
    the home cannot be."""
    spares = (folder / home.connection.name for folder in sockets.list_spares(home) if sockets.is_ours(folder))
    for path in (home.connection, *spares):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=Connection)
        except (OSError, msgspec.MsgspecError, RecursionError):
            continue


def is_running(connection: Connection) -> bool:
    """Whether the supervisor that wrote this connection still runs."""
    return is_alive(connection.pid, connection.start_time, connection.identity, "engine.supervisor")


def write_connection(home: Home, connection: Connection) -> Path:
    """Write the connection file, in a spare directory when the home is full or read-only; returns its path. Raises
    OSError."""
    content = msgspec.json.encode(connection)
    try:
        # An engine must not take seconds to start because something else fills the disk's queue.
        write_private(home.connection, content, durable=False)
        return home.connection
    except OSError:
        path = sockets.make_spare(home) / home.connection.name
        write_private(path, content, durable=False)
        return path


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
