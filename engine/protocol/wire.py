"""Encoding, socket addresses and the connection file.

A client has one DEALER socket to the supervisor's ROUTER; replies and events come over the same pipe, so that nothing
published after a snapshot can overtake or miss it. Workers have one DEALER to a second ROUTER. Both addresses depend on
the home alone: whoever binds them next is found by everybody without being told.
"""

from __future__ import annotations

import os
import stat
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
"""First frame of what a supervisor sends to a client."""

_encoder = msgspec.msgpack.Encoder()
_bodies = msgspec.msgpack.Decoder(Body)
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


class Connection(msgspec.Struct, kw_only=True):
    """What `engine/<host>/connection.json` holds while a supervisor is up."""

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
    """Raises msgspec.MsgspecError when the payload is not a `kind`."""
    decoded: T = msgspec.msgpack.decode(payload, type=kind)
    return decoded


def decode_body(payload: bytes | msgspec.Raw) -> Any:
    """A published body. Raises msgspec.ValidationError for a kind that this version does not know."""
    return _bodies.decode(payload)


def decode_instruction(payload: bytes) -> Instruction | CancelInstruction:
    """What a supervisor tells a worker."""
    instruction: Instruction | CancelInstruction = _to_worker.decode(payload)
    return instruction


def decode_from_worker(payload: bytes) -> Any:
    """What a worker tells the supervisor: one of `messages.FromWorker`. Raises msgspec.MsgspecError."""
    return _from_worker.decode(payload)


def encode_raw(message: Message) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(message))


def control_address(home: Home) -> str:
    return f"ipc://{home.sockets / 'control'}"


def workers_address(home: Home) -> str:
    return f"ipc://{home.sockets / 'workers'}"


def make_socket_directory(home: Home) -> Path:
    """The socket directory, made owner-only. Raises ProblemError when somebody else owns it or can write to it."""
    folder = home.sockets
    for part in (folder.parent, folder):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = part.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ProblemError(
                Problem(
                    title=f"The socket directory {part} is not private",
                    cause=f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}; it must be yours alone (700)",
                    hint=f"chmod 700 {part}, or set XDG_RUNTIME_DIR to a directory of your own",
                )
            )
    return folder


def read_connection(home: Home) -> Connection | None:
    """The connection file, or None when there is none or it cannot be read as one."""
    try:
        return msgspec.json.decode(home.connection.read_bytes(), type=Connection)
    except (OSError, msgspec.MsgspecError):
        return None


def write_connection(home: Home, connection: Connection) -> None:
    write_private(home.connection, msgspec.json.encode(connection))


def start_time(pid: int) -> float:
    """When the process started, seconds since the epoch. Raises psutil.Error when there is none."""
    started: float = psutil.Process(pid).create_time()
    return started


def is_alive(pid: int, start_time: float) -> bool:
    """Whether that very process still runs: pid and start time agree, and it is not a zombie."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - start_time) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def protocol_mismatch(theirs: int) -> Problem:
    """Says which side to restart."""
    older, newer = ("engine", "cockpit") if theirs < PROTOCOL else ("cockpit", "engine")
    mend = (
        "cockpit engine stop, then cockpit engine start; running jobs go on and are adopted"
        if older == "engine"
        else "leave this cockpit and start it again from the installation that the engine was started from"
    )
    return Problem(
        title="The cockpit and the engine speak different protocols",
        cause=f"the engine speaks version {theirs}, this cockpit version {PROTOCOL}: the {older} is older than the {newer}",
        hint=f"restart the {older}: {mend}",
    )
