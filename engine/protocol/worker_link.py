"""A worker's connection to the supervisor. Losing it harms no worker: what matters is in its journal.

One background thread owns the socket. The working thread only appends to a queue and reads another; none of its calls
blocks. When the supervisor is replaced, the thread looks in the home for the address of the next one, makes sure that
it is the same user's, and introduces the worker again. Where no socket reaches the worker, files take the place of the
socket (`file_channel`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from engine.protocol import process, sockets, wire
from engine.protocol.file_channel import SCHEME, Beat, WorkerFiles
from engine.protocol.home import Home, host_name
from engine.protocol.messages import (
    Answered,
    CancelInstruction,
    FromWorker,
    Heartbeat,
    Instruction,
    Joined,
    Problem,
    ProblemError,
    Rank,
    Said,
    Status,
    Written,
)

HEARTBEAT = 1.0
"""Seconds between heartbeats."""
CONNECT_TIMEOUT = 10.0
"""Seconds after which an attempt to connect that nobody has answered is given up for the next."""
OUTBOX = 100_000
"""The most messages that are kept while no supervisor listens. The oldest are dropped first; metrics are in the journal
anyway."""


class Link:
    """`take_instructions` returns the supervisor's instructions in order; `answer` replies to one.

    `address` is where the supervisor was when it started the worker; `home` has the connection file that says where
    the present one is. An address `file:FOLDER` stands for the files of a channel. `memory` is called from the
    background thread before each heartbeat, and sets the memory figures of a `Rank`. `on_cancel` gets the id of a
    cancelled request; `on_instruction` is called after an instruction has come. With `die_with_parent`, a rank
    under torchrun ends itself when its parent has ended, so that no orphan holds a device.
    """

    def __init__(
        self,
        address: str,
        job: str,
        attempt: int,
        rank: int = 0,
        *,
        home: Home | None = None,
        memory: Callable[[Rank], None] | None = None,
        on_cancel: Callable[[str], None] | None = None,
        on_instruction: Callable[[], None] | None = None,
        die_with_parent: bool = False,
    ) -> None:
        self.job, self.attempt, self.rank = job, attempt, rank
        self.instructions_arrived = threading.Event()
        """Set while instructions wait. A paused worker waits for it."""
        self._address, self._home = address, home
        self._state = Rank(rank=rank, pid=os.getpid(), phase="starting", time=time.time())
        self._memory, self._on_cancel, self._on_instruction = memory, on_cancel, on_instruction
        self._parent = os.getppid() if die_with_parent else None
        self._inbox: deque[Instruction] = deque()
        self._outbox: deque[FromWorker] = deque(maxlen=OUTBOX)
        self._status: Status | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._closing = threading.Event()
        self.by_files = address.startswith(SCHEME)
        serve = self._serve_files if self.by_files else self._serve
        self._size = 0
        self._thread = threading.Thread(target=serve, name="link", daemon=True)
        self._thread.start()

    # ── called by the working thread ──────────────────────────────────────────────────────────────────────────────

    def report_progress(self, *, phase: str | None = None, step: int | None = None) -> None:
        """Note progress, which the thread sends with the next heartbeat; a new phase is sent at once. Cheap enough for
        every step."""
        if phase is not None and phase != self._state.phase:
            self._state.phase = phase
            self._state.time = time.time()
            self._send(Heartbeat(job=self.job, rank=self._state))
        if step is not None:
            self._state.step = step
        self._state.time = time.time()

    def set_waiting(self, begins: bool) -> None:
        """Note that this rank starts (`begins`) or stops waiting for the others."""
        self._state.waiting = begins

    def announce_journal(self, size: int) -> None:
        """Tell the supervisor that the journal is `size` bytes long."""
        self._size = size
        self._send(Written(job=self.job, size=size))

    def take_instructions(self) -> list[Instruction]:
        """The instructions that have come since the last call, in order."""
        self.instructions_arrived.clear()
        taken = []
        while self._inbox:
            taken.append(self._inbox.popleft())
        return taken

    def answer(
        self, instruction: Instruction, *, step: int = 0, result: object = None, problem: Problem | None = None
    ) -> None:
        self._send(Answered(id=instruction.id, step=step, result=result, problem=problem))

    def send_event(self, request: str, kind: str, **data: object) -> None:
        """Send an event of a service while it answers `request`."""
        self._send(Said(request=request, kind=kind, data=data))

    def send_status(
        self,
        state: str,
        *,
        target: str = "",
        device: str = "",
        detail: str = "",
        address: str = "",
        figures: dict[str, float] | None = None,
    ) -> None:
        """Send a service's new state."""
        self._status = Status(
            state=state, target=target, device=device, detail=detail, address=address, figures=figures or {}
        )
        self._send(self._status)

    def close(self, seconds: float = 2.0) -> None:
        """Send the remaining messages, for at most `seconds`, and end the thread. What is sent afterwards is lost."""
        self._closing.set()
        self._wake()
        self._thread.join(seconds)
        if not self._thread.is_alive() and self._wake_write >= 0:
            read, write = self._wake_read, self._wake_write
            self._wake_read = self._wake_write = -1
            os.close(write)
            os.close(read)

    # ── the background thread ─────────────────────────────────────────────────────────────────────────────────────

    def _send(self, message: FromWorker) -> None:
        self._outbox.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._wake_write < 0:
            return  # closed: nobody is there to wake
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            pass  # the pipe is full of earlier wake-ups, so the thread is awake

    def _serve(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.immediate = 1  # queue nothing while no supervisor is connected: it reads the journal
        socket.sndhwm = 100_000
        socket.reconnect_ivl = -1  # never to the same path unseen: another user may have made it since
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        connecting = self._connect(socket)
        poller = zmq.Poller()
        for source in (socket, monitor, self._wake_read):
            poller.register(source, zmq.POLLIN)
        connected = False
        beat = time.monotonic()
        while True:
            ready = dict(poller.poll(max(0, int((beat - time.monotonic()) * 1000))))
            if monitor in ready:
                connected = parse_monitor_message(monitor.recv_multipart())["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
                connecting = 0.0
                if connected:
                    self._introduce()
            if self._wake_read in ready:
                os.read(self._wake_read, 65536)
            if socket in ready:
                self._take(socket.recv())
            if time.monotonic() >= beat:
                beat = time.monotonic() + HEARTBEAT
                self._beat(connected)
                if not connected and time.monotonic() > connecting:
                    connecting = self._connect(socket)
            if connected:
                self._flush(socket)
            if self._closing.is_set():
                break
        socket.disable_monitor()
        monitor.close(0)
        context.destroy(linger=1000)

    def _serve_files(self) -> None:
        """As `_serve`, by files. What they cannot take now (a full disk, a server that does not answer) waits."""
        files = WorkerFiles(Path(self._address.removeprefix(SCHEME)), self.attempt, self.rank)
        self._state.host = host_name()
        synced = 0
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        while True:
            closing = self._closing.is_set()
            self._beat(connected=False)
            beat = Beat(attempt=self.attempt, rank=self._state, journal=self._size, ended=closing)
            if beat.journal != synced:  # a client of NFS may keep what is written for half a minute
                with contextlib.suppress(OSError):
                    self._sync_journal()
                    synced = beat.journal
            with contextlib.suppress(OSError):
                files.beat(beat)
                while self._outbox:
                    files.reply(self._outbox[0])
                    self._outbox.popleft()
            if closing:
                return
            for message in files.take():
                self._take_message(message)
            if files.must_end():
                os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + HEARTBEAT / 2
            while (left := until - time.monotonic()) > 0 and not self._closing.is_set():
                if poller.poll(int(left * 1000) + 1):
                    os.read(self._wake_read, 65536)
                    if any(isinstance(each, (Answered, Said, Status)) for each in list(self._outbox)):
                        break

    def _sync_journal(self) -> None:
        if self._home is not None:
            descriptor = os.open(self._home.run(self.job).events, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _connect(self, socket: zmq.Socket[bytes]) -> float:
        """Begin to connect to the supervisor. Returns until when (`time.monotonic()`) that may take; 0 when there is
        none now."""
        with contextlib.suppress(zmq.ZMQError):
            socket.disconnect(self._address)
        connection = wire.read_connection(self._home) if self._home else None
        self._address = connection.workers if connection else self._address
        try:
            if not sockets.check_peer(self._address):
                return 0.0
        except ProblemError:
            return 0.0  # another user's: what this worker has to say is in its journal
        socket.connect(self._address)
        return time.monotonic() + CONNECT_TIMEOUT

    def _introduce(self) -> None:
        """The first messages of every connection: who the worker is, and a service's state, whose last message may have
        gone to a supervisor that died."""
        if self._status:
            self._outbox.appendleft(self._status)
        pid = os.getpid()
        joined = Joined(
            job=self.job,
            attempt=self.attempt,
            rank=self.rank,
            pid=pid,
            start_time=process.read_start_time(pid),
            identity=process.read_identity(pid),
        )
        self._outbox.appendleft(joined)

    def _beat(self, connected: bool) -> None:
        if self._memory:
            self._memory(self._state)
        if connected:
            self._outbox.append(Heartbeat(job=self.job, rank=self._state))
        if self._parent is not None and os.getppid() != self._parent:
            with contextlib.suppress(OSError):
                os.write(2, f"rank {self.rank}: the launching process is gone, ending\n".encode())
            os._exit(1)

    def _flush(self, socket: zmq.Socket[bytes]) -> None:
        while self._outbox:
            message = self._outbox.popleft()
            try:
                socket.send(wire.encode(message), zmq.NOBLOCK)
            except zmq.Again:
                self._outbox.appendleft(message)
                return

    def _take(self, payload: bytes) -> None:
        self._take_message(wire.decode_instruction(payload))

    def _take_message(self, message: Instruction | CancelInstruction) -> None:
        if isinstance(message, CancelInstruction):
            if self._on_cancel:
                self._on_cancel(message.request)
            return
        self._inbox.append(message)
        self.instructions_arrived.set()
        if self._on_instruction:
            self._on_instruction()
