"""The supervisor's one loop: it reads the sockets, runs the timers and publishes events. Work that would block it goes
to a thread."""

from __future__ import annotations

import os
import sqlite3
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import zmq

from engine.protocol import states, wire
from engine.protocol.home import Home
from engine.protocol.messages import (
    OPERATIONS,
    PROTOCOL,
    Answered,
    CancelInstruction,
    Closing,
    Heartbeat,
    Instruction,
    Joined,
    Message,
    Problem,
    ProblemError,
    Ranks,
    Request,
    Run,
    Said,
    Status,
    Telemetry,
    Written,
)
from engine.supervisor.address_record import AddressRecord
from engine.supervisor.adoption import Backlog, adopt_runs, refresh_runs_of_other_hosts
from engine.supervisor.ahead import Ahead
from engine.supervisor.clients import Caller, Clients
from engine.supervisor.devices import Devices
from engine.supervisor.elsewhere import Elsewhere
from engine.supervisor.launching import Launcher
from engine.supervisor.notices import Notices
from engine.supervisor.pending import PendingRequests
from engine.supervisor.queue import Queue
from engine.supervisor.registry import Registry
from engine.supervisor.run_monitor import RunMonitor
from engine.supervisor.run_record import Point, Record
from engine.supervisor.runs import Runs
from engine.supervisor.services import Services
from engine.supervisor.sockets import Sockets
from engine.supervisor.telemetry import Sampler
from engine.supervisor.unstored import Unstored

FLUSH = 0.2
"""Seconds between readings of the journals, after each of which progress is published."""
SECOND, MINUTE = 1.0, 60.0
MOST_COMPLAINTS = 100
"""How often a message that cannot be read is put into the log."""
OTHER_HOSTS = 5.0
"""Seconds between readings of the journals that other hosts write in this home."""

Handler = Callable[[Any, Caller, Any], Message | None]
"""`(server, caller, message)` -> the reply, or None when the reply comes later."""


class Server:
    """`run` serves until `close` is called. Handlers get the server and reach runs, queue, services and registry
    through it."""

    def __init__(self, home: Home, handlers: Mapping[str, Handler], workers: str = "engine.workers") -> None:
        self.home = home
        self.started = time.time()
        self.registry = Registry(home.registry)
        self.telemetry: Telemetry | None = None
        self._handlers = handlers
        self.closing, self._closing_when_idle = False, False
        self._unread, self._logged = set[str](), set[str]()
        self._unstored = Unstored()
        """Parts of journals that wait for the registry's thread."""
        self._calls: deque[Callable[[], None]] = deque()
        self._index_thread = ThreadPoolExecutor(1, "registry")
        self._threads = ThreadPoolExecutor(4, "background")
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)

        self.sockets = Sockets(home, zmq.Context())
        self._jobs_of: dict[bytes, str] = {}
        self.clients = Clients(self.sockets.control)
        self.address = AddressRecord(home, self.sockets, self.clients.session)
        self._pending = PendingRequests(self.clients)

        publish = self.clients.publish
        self.sampler = Sampler(home.root, lambda sample: self.call_soon(lambda: self._take_sample(sample)))
        address, devices = partial(self.sockets.address, "workers"), Devices(lambda: self.sampler.devices)
        self.ahead = ahead = Ahead(home, workers, devices)
        self.services = Services(home, workers, address, devices, publish, self.instruct, self._pending.fail, ahead)
        self.runs = Runs(home)
        self.queue = Queue(self.runs, Launcher(home, workers, address, devices, ahead, self.services.slurm))
        self.backlog = Backlog(self.runs, self.index, self._unstored.wait)
        self.monitor = RunMonitor(self.runs, self.queue, publish, self.instruct, self.run_in_background)
        self.notices = Notices(home, self.runs, self.call_soon, self.monitor.warn)
        self.elsewhere = Elsewhere(self.runs, self.monitor, self.services, self._pending, self._take_answer)

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        adopt_runs(self.runs, self.queue, self.monitor, self._load_registry(), self.backlog)
        self.sampler.start()
        poller = zmq.Poller()
        control, workers = self.sockets.control, self.sockets.workers
        for source in (control, workers, self._wake_read):
            poller.register(source, zmq.POLLIN)
        timers = [
            (FLUSH, self._flush),
            (SECOND, self._each_second),
            (SECOND / 2, self.elsewhere.poll),
            (MINUTE, lambda: self._index_thread.submit(self.registry.thin_telemetry, time.time())),
            (OTHER_HOSTS, lambda: refresh_runs_of_other_hosts(self.runs, self.monitor)),
        ]
        due = [(time.monotonic(), period, action) for period, action in timers]
        advanced = 0.0
        while not self.closing:
            wait = min(when for when, _, _ in due) - time.monotonic()
            if self.clients.waiting:
                wait = min(wait, self.clients.retry)
            reading = bool(self.backlog) and not self._unstored.full
            ready = dict(poller.poll(0 if reading else max(0, int(wait * 1000) + 1)))
            # Also now and then beside a client that asks without end.
            if reading and (not ready or time.monotonic() - advanced > FLUSH):
                self._guard(self.backlog.advance)
                advanced = time.monotonic()
            if self._wake_read in ready:
                os.read(self._wake_read, 65536)
            if workers in ready:
                self._receive(workers, self._from_worker)
            if control in ready:
                self._receive(control, self._from_client)
            while self._calls:
                self._guard(self._calls.popleft())
            if self.clients.waiting:
                self._guard(self.clients.drain)
            now = time.monotonic()
            for index, (when, period, action) in enumerate(due):
                if now >= when:
                    self._guard(action)
                    due[index] = (time.monotonic() + period, period, action)
        self._end()

    def _receive(self, socket: zmq.Socket[bytes], handle: Callable[[bytes, bytes], None]) -> None:
        """Handle the messages that have come, at most a thousand before the other socket has its turn."""
        for _ in range(1000):
            try:
                identity, *frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) == 1:
                payload = frames[0]
                self._guard(lambda identity=identity, payload=payload: handle(identity, payload))  # type: ignore[misc]
            else:
                self.clients.ignored += 1

    def _guard(self, action: Callable[[], object]) -> None:
        """Call `action`. A mistake of ours in it goes to the log, each once, and does not end the supervisor: the jobs
        need it."""
        try:
            action()
        except Exception as error:  # noqa: BLE001
            if (text := "".join(traceback.format_exception(error))) not in self._logged:
                self._logged.add(text)
                print(text, flush=True)

    def _load_registry(self) -> dict[str, tuple[Run, int]]:
        try:
            return self.registry.load()
        except sqlite3.Error as error:
            self.registry.replace(error)
            return {}

    def close(self) -> None:
        """End the loop. Jobs go on, and the next supervisor adopts them. Safe in a signal handler."""
        self.closing = True
        os.write(self._wake_write, b"!")

    def close_when_idle(self) -> None:
        """End the loop when the jobs that are being ended have ended."""
        self._closing_when_idle = True

    def _end(self) -> None:
        self._flush()
        self.clients.publish(Closing())
        self.sampler.stop()
        self.ahead.close()
        self._index_thread.shutdown(wait=True)
        self._threads.shutdown(wait=True)
        self.elsewhere.slurm.close()
        self.registry.close()
        self.sockets.close()

    # ── threads ───────────────────────────────────────────────────────────────────────────────────────────────────

    def call_soon(self, action: Callable[[], None]) -> None:
        """From any thread: run `action` in the loop."""
        self._calls.append(action)
        os.write(self._wake_write, b"!")

    def run_in_background(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Run `work` in a thread, then `then` in the loop. When `work` fails, the traceback goes to the log and `then`
        still runs."""

        def done(future: Future[None]) -> None:
            if error := future.exception():
                traceback.print_exception(error)
            self.call_soon(then)

        self._threads.submit(work).add_done_callback(done)

    def reply_later(self, caller: Caller, work: Callable[[], Message], *, index: bool = False) -> None:
        """Reply with what `work` returns, run in the registry's thread (`index`) or another."""

        def done(future: Future[Message]) -> None:
            error = future.exception()
            if error is not None:
                self.call_soon(lambda: self.clients.reply_with_error(caller, error))
            else:
                self.call_soon(lambda: self.clients.reply(caller, future.result()))

        def work_unless_closing() -> Message:
            if self.closing:  # a long list of questions must not keep the engine from its end
                raise ProblemError(
                    Problem(code="engine.closing", title="The engine is ending", hint="ask again: the next one answers")
                )
            return work()

        (self._index_thread if index else self._threads).submit(work_unless_closing).add_done_callback(done)

    # ── clients ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _from_client(self, identity: bytes, payload: bytes) -> None:
        try:
            request = wire.decode(payload, Request)
        except Exception:  # noqa: BLE001 - whatever it is: without an id there is nothing to reply to
            self.clients.ignored += 1
            return
        caller = Caller(identity, request.id)
        try:
            if request.protocol != PROTOCOL:
                raise ProblemError(wire.protocol_mismatch(request.protocol))
            if request.operation not in OPERATIONS:
                raise ProblemError(
                    Problem(
                        code="engine.unknown_operation",
                        title=f"The engine knows no operation {request.operation!r}",
                        hint=(
                            "Restart whichever is older: the engine with `cockpit engine stop`, "
                            "then `cockpit engine start`; or this cockpit"
                        ),
                    )
                )
            message = wire.decode(request.body, OPERATIONS[request.operation].request)
            result = self._handlers[request.operation](self, caller, message)
        except msgspec.MsgspecError as error:
            self.clients.reply_with_error(
                caller,
                ProblemError(
                    Problem(
                        code="request.malformed",
                        title=f"The request '{request.operation}' is malformed",
                        cause=str(error),
                    )
                ),
            )
        except Exception as error:  # noqa: BLE001 - a client's request must never end the supervisor
            self.clients.reply_with_error(caller, error)
        else:
            if result is not None:
                self.clients.reply(caller, result)

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def instruct(self, identity: bytes, instruction: Instruction | CancelInstruction) -> None:
        try:
            self.sockets.workers.send_multipart([identity, wire.encode(instruction)], zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # the worker has just ended: `reap` notices, and the requests that wait for its answer fail

    def expect_answer(
        self, caller: Caller, job: str, instruction: Instruction, finish: Callable[[Answered], Message]
    ) -> None:
        """Reply to the caller when the worker has answered this instruction, or when it has ended."""
        self._pending.add(instruction.id, caller, job, finish)

    def _from_worker(self, identity: bytes, payload: bytes) -> None:
        try:
            message = wire.decode_from_worker(payload)
        except Exception as error:  # noqa: BLE001 - no message may end the supervisor
            self.clients.ignored += 1
            if self.clients.ignored < MOST_COMPLAINTS:
                print(f"a worker sent a message that cannot be read: {error!r}", flush=True)
            return
        if isinstance(message, Joined):
            self._jobs_of[identity] = message.job
            if message.job in self.runs.records:
                self.monitor.register_rank(self.runs.records[message.job], message.rank, identity)
            else:
                self.services.register(message, identity)
        elif isinstance(message, Written):
            self._unread.add(message.job)
        elif isinstance(message, Heartbeat) and message.job in self.runs.records:
            self.monitor.take_heartbeat(self.runs.records[message.job], message.rank)
        elif isinstance(message, Answered):
            self._take_answer(message)
        elif identity in self._jobs_of and isinstance(message, Said):
            self.services.forward_event(self._jobs_of[identity], message)
        elif isinstance(message, Status) and self._jobs_of.get(identity) in self.services.workers:
            self.services.update_status(self._jobs_of[identity], message)

    def _take_answer(self, answer: Answered) -> None:
        request = self._pending.pop(answer.id)
        if request is None:
            return
        if answer.problem is None and request.job in self.runs.records:
            self.monitor.read_journal(self.runs.records[request.job])  # so that the reply has the state after it
        self._pending.answer(request, answer)

    # ── timers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _flush(self) -> None:
        """Read the journals that have grown, notice ended workers, start queued runs, publish and index all changes."""
        grown, self._unread = (set(), self._unread) if self._unstored.full else (self._unread, set())
        for job in grown:
            record = self.runs.records.get(job)
            if record is not None and self.monitor.read_journal(record):
                self._unread.add(job)
        self.monitor.reap()
        self.services.reap()
        self.queue.schedule()
        self.publish_changes()
        if self._closing_when_idle and not self.runs.list_live():
            self.closing = True

    def publish_changes(self) -> None:
        """Publish and index the runs that have changed since the last call."""
        for record in self.monitor.publish_changed():
            self.notices.look(record)
            if record.run.state in states.ENDED:
                self._pending.resolve_ended(record.run)
            self.index(record)

    def index(self, record: Record) -> None:
        """Give the registry's thread what it does not have yet."""
        run = msgspec.structs.replace(record.run, metrics=dict(record.run.metrics))
        points, entries = record.take_unindexed()
        if run.id in self.runs.records:
            self._unstored.add()
            self._index_thread.submit(self._store, run, record.offset, points, entries)

    def _store(self, run: Run, offset: int, points: list[Point], entries: list[tuple[int, bytes]]) -> None:
        try:
            self.registry.store(run, offset, points, entries)
        except sqlite3.OperationalError as error:
            print(f"{run.id} cannot be indexed now: {error}", flush=True)  # full or locked: read again next time
        except sqlite3.DatabaseError as error:
            self.registry.replace(error)
            self.call_soon(self._reread)
        except Exception:  # noqa: BLE001 - an index that cannot be written (disk full) is rebuilt later; the journals hold all
            traceback.print_exc()
        finally:
            self._unstored.remove()

    def _reread(self) -> None:
        """Read every run again: the registry has been replaced by an empty one."""
        for record in self.runs.records.values():
            record.offset, record.torn_at = 0, -1
            self.backlog.add(record)

    def _each_second(self) -> None:
        for record in self.runs.records.values():
            if record.unwritten:
                record.flush_lifecycle()
        for record in self.runs.list_live():
            if record.ranks:
                ranks = sorted(record.ranks.values(), key=lambda rank: rank.rank)
                self.clients.publish(Ranks(run=record.run.id, ranks=ranks))
            if record.leader is not None:
                self._unread.add(record.run.id)  # a `Written` message may have been lost; the journal's content is not
        self.monitor.warn_of_hangs()
        self.address.keep()
        self.services.close_abandoned(self.clients.is_reachable)
        self.ahead.look(self.telemetry, self.runs.list_live(), self.services.is_starting())

    def _take_sample(self, sample: Telemetry) -> None:
        self.telemetry = sample
        self.clients.publish(sample)
        self._index_thread.submit(self.registry.add_telemetry, sample)
