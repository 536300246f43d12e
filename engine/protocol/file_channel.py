"""Commands and heartbeats as files in `control/` beside a run's journal, where no socket reaches the run's processes.

    commands.json      the supervisor: the instructions that nobody has answered yet
    rank-N.json        rank N: its heartbeat, and on rank 0 the length of the journal
    replies-A.jsonl    rank 0 of attempt A: answers, and events of a reply that is being generated; a service's state
    host-H.json        the first rank on host H: figures of the host and its devices
    stop-A             the batch script of attempt A: save and end, because the time is nearly over
    notice.json        the process that watches over several hosts: what the user should know
    ended-A.json       the same: why attempt A has ended
    lease              the supervisor, for a service: it still asks for it

Each file has one writer. Files are replaced as a whole, under names that do not change: over NFS, opening a name asks
the server, while a list of names may be some seconds old. Replies are appended, like a journal.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import msgspec

from engine.protocol import attempt_fence
from engine.protocol.description import Rank, Telemetry
from engine.protocol.home import make_private, write_all
from engine.protocol.problem import Problem
from engine.protocol.worker_messages import Answered, CancelInstruction, FromWorker, Instruction, Said, Status

SCHEME = "file:"
"""What an address begins with that is the folder of a channel."""
LEASE_EVERY = 5.0
"""Seconds between two signs of life to a service."""


class Commands(msgspec.Struct, kw_only=True):
    """`commands.json`. Instructions are in order; a worker takes each id once."""

    attempt: int
    instructions: list[Instruction] = []
    cancelled: list[str] = []
    """Requests that were given up."""


class Beat(msgspec.Struct, kw_only=True):
    """`rank-N.json`."""

    attempt: int
    rank: Rank
    journal: int = 0
    """Bytes of the journal, where this rank writes it."""
    count: int = 0
    """Counts heartbeats: one that says nothing new is a heartbeat, too."""
    ended: bool = False
    """Whether the rank has said all it had to say."""


class Notice(msgspec.Struct, kw_only=True):
    """`notice.json`."""

    attempt: int
    number: int
    """Counts the notices of an attempt."""
    problem: Problem


_encode = msgspec.json.encode
_commands = msgspec.json.Decoder(Commands)
_beat = msgspec.json.Decoder(Beat)
_reply = msgspec.json.Decoder(FromWorker)
_telemetry = msgspec.json.Decoder(Telemetry)


def commands_file(folder: Path) -> Path:
    return folder / "commands.json"


def rank_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def replies_file(folder: Path, attempt: int) -> Path:
    return folder / f"replies-{attempt}.jsonl"


def stop_file(folder: Path, attempt: int) -> Path:
    return folder / f"stop-{attempt}"


def notice_file(folder: Path) -> Path:
    return folder / "notice.json"


def ended_file(folder: Path, attempt: int) -> Path:
    return folder / f"ended-{attempt}.json"


def host_file(folder: Path, host: str) -> Path:
    return folder / f"host-{host}.json"


def read_lease(folder: Path) -> bytes:
    """The supervisor's sign of life to a service; empty when there is none that can be read."""
    try:
        return (folder / "lease").read_bytes()
    except OSError:
        return b""


def read_hosts(folder: Path) -> list[Telemetry]:
    """The last samples of a run's hosts."""
    found = []
    for path in sorted(folder.glob("host-*.json")):
        try:
            found.append(_telemetry.decode(path.read_bytes()))
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            continue
    return found


def replace(path: Path, content: bytes) -> None:
    """Replace a small file as a whole. Not synced: whoever wrote it last writes it again. Raises OSError.

    When the disk is full, the file before gets a new time, which takes no room: its writer is alive.
    """
    attempt_fence.check()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(descriptor, content)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            os.utime(path)
        raise


def read_time(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 when there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def read_beat(folder: Path, rank: int) -> Beat | None:
    """A rank's last heartbeat; None when there is none that can be read."""
    try:
        return _beat.decode(rank_file(folder, rank).read_bytes())
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None


def read_notice(folder: Path, attempt: int) -> Notice | None:
    """The last notice of an attempt; None when there is none."""
    try:
        notice = msgspec.json.decode(notice_file(folder).read_bytes(), type=Notice)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return notice if notice.attempt == attempt else None


def read_replies(folder: Path, attempt: int, offset: int) -> tuple[list[FromWorker], int]:
    """The complete replies from byte `offset` on, and the offset after them."""
    found: list[FromWorker] = []
    try:
        with open(replies_file(folder, attempt), "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                try:
                    found.append(_reply.decode(line))
                except (msgspec.MsgspecError, ValueError, RecursionError):
                    continue
    except OSError:
        pass
    return found, offset


class WorkerFiles:
    """A rank's end. Commands of other attempts are none of its business."""

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        self._folder, self._attempt, self._rank = folder, attempt, rank
        self._taken: set[str] = set()
        self._ending = False
        self._count = 0
        self._seen: tuple[int, int] = 0, 0
        with contextlib.suppress(OSError):
            make_private(folder)

    def beat(self, beat: Beat) -> None:
        """Raises OSError."""
        self._count += 1
        beat.count = self._count
        replace(rank_file(self._folder, self._rank), _encode(beat))

    def reply(self, message: FromWorker) -> None:
        """Pass on an answer, an event or a service's state. The supervisor learns all else from heartbeats. Raises
        OSError."""
        if self._rank != 0 or not isinstance(message, (Answered, Said, Status)):
            return
        attempt_fence.check()
        path = replies_file(self._folder, self._attempt)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, _encode(message) + b"\n")
        except OSError:
            os.ftruncate(descriptor, size)  # it is written again, as a whole
            raise
        finally:
            os.close(descriptor)

    def must_end(self) -> bool:
        """Whether the batch script wants the run to save and end. True once."""
        if self._ending or not stop_file(self._folder, self._attempt).exists():
            return False
        self._ending = True
        return True

    def take(self) -> list[Instruction | CancelInstruction]:
        """The messages that are new. Rank 0 takes all; the others only those that every rank carries out at once."""
        found: list[Instruction | CancelInstruction] = []
        path = commands_file(self._folder)
        try:
            status = path.stat()
            if (status.st_ino, status.st_mtime_ns) == self._seen:
                return found
            commands = _commands.decode(path.read_bytes())
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return found
        self._seen = status.st_ino, status.st_mtime_ns
        if commands.attempt != self._attempt:
            return found
        for instruction in commands.instructions:
            if instruction.id not in self._taken and (self._rank == 0 or instruction.name == "stacks"):
                self._taken.add(instruction.id)
                found.append(instruction)
        for request in commands.cancelled:
            if self._rank == 0 and request not in self._taken:
                self._taken.add(request)
                found.append(CancelInstruction(request=request))
        return found


class SupervisorFiles:
    """The supervisor's end for one attempt of a run. `fresh` when its processes have yet to be started."""

    def __init__(self, folder: Path, attempt: int, *, fresh: bool) -> None:
        self.attempt = attempt
        self._folder = folder
        self._commands = Commands(attempt=attempt)
        self._written = not fresh
        replies, self._offset = read_replies(folder, attempt, 0)
        if not fresh:  # what an earlier supervisor has sent, and nobody has answered, still holds
            answered = {reply.id for reply in replies if isinstance(reply, Answered)}
            self._load(answered)
        self._beats: dict[int, tuple[Beat, int]] = {}
        self._noticed = 0
        self._lock = threading.Lock()
        self.reading = False
        """Whether a thread polls."""
        self._leased = 0.0
        make_private(folder)
        if fresh:
            with contextlib.suppress(OSError):  # over NFS a host may believe for long that a file is not there
                os.close(os.open(replies_file(folder, attempt), os.O_WRONLY | os.O_CREAT, 0o600))
        if fresh:  # those of hosts that the attempt before was on; their clocks may differ, so times say nothing
            for path in folder.glob("host-*.json"):
                path.unlink(missing_ok=True)

    def send(self, message: Instruction | CancelInstruction) -> None:
        """Raises nothing: what the disk refuses is written by a later `poll`."""
        with self._lock:
            if isinstance(message, Instruction):
                self._commands.instructions.append(message)
            else:
                self._commands.cancelled.append(message.request)
            self._write()

    def _load(self, answered: set[str]) -> None:
        try:
            commands = _commands.decode(commands_file(self._folder).read_bytes())
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return
        if commands.attempt == self.attempt:
            self._commands = commands
            self._commands.instructions = [each for each in commands.instructions if each.id not in answered]

    def list_requests(self) -> list[str]:
        """The requests to a service that have not been answered yet."""
        return [each.arguments.get("request", "") for each in self._commands.instructions]

    def keep_lease(self) -> None:
        """Tell a service every few seconds that it is still wanted."""
        if time.monotonic() - self._leased > LEASE_EVERY:
            self._leased = time.monotonic()
            with contextlib.suppress(OSError):
                replace(self._folder / "lease", f"{os.getpid()} {self._leased}".encode())

    def waits_for(self, name: str) -> bool:
        """Whether an instruction of this name has not been answered yet."""
        return any(each.name == name for each in self._commands.instructions)

    def poll(self, world: int) -> tuple[list[Beat], list[FromWorker]]:
        """Heartbeats of `world` ranks that have changed, and new replies."""
        beats = []
        for rank in range(world):
            when = read_time(rank_file(self._folder, rank))
            beat = read_beat(self._folder, rank)
            if beat is not None and beat.attempt == self.attempt and (beat, when) != self._beats.get(rank):
                self._beats[rank] = beat, when
                beats.append(beat)
        replies, self._offset = read_replies(self._folder, self.attempt, self._offset)
        answered = {reply.id for reply in replies if isinstance(reply, Answered)}
        with self._lock:
            if answered:
                left = [each for each in self._commands.instructions if each.id not in answered]
                self._commands.instructions, self._written = left, False
            if not self._written:
                self._write()
        return beats, replies

    def take_notice(self) -> Problem | None:
        """What the user should know, once."""
        notice = read_notice(self._folder, self.attempt)
        if notice is None or notice.number == self._noticed:
            return None
        self._noticed = notice.number
        return notice.problem

    def _write(self) -> None:
        try:
            replace(commands_file(self._folder), _encode(self._commands))
            self._written = True
        except OSError:
            self._written = False
