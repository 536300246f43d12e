"""The supervisor's one loop: sockets in, events out, timers between. Nothing in it blocks; what would, goes to a thread."""

from __future__ import annotations

import os
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import zmq

from engine.protocol import states, wire
from engine.protocol.home import Home, host_name
from engine.protocol.messages import (
    OPERATIONS,
    PROTOCOL,
    Answered,
    Body,
    CancelInstruction,
    Closing,
    Event,
    Heartbeat,
    Instruction,
    Joined,
    Message,
    Problem,
    ProblemError,
    Ranks,
    Reply,
    Request,
    Run,
    Said,
    Status,
    Telemetry,
    Written,
)
from engine.supervisor.adoption import refresh_foreign, take_over
from engine.supervisor.operations import HANDLERS
from engine.supervisor.queue import Queue
from engine.supervisor.registry import Registry
from engine.supervisor.run_monitor import Watch
from engine.supervisor.run_record import Point, Record
from engine.supervisor.runs import Runs
from engine.supervisor.services import Services
from engine.supervisor.telemetry import Sampler

FLUSH = 0.2
"""Seconds between looks at the journals and publications of progress."""
SECOND = 1.0
MINUTE = 60.0
FOREIGN = 5.0


@dataclass(frozen=True)
class Caller:
    """Whom a reply goes to."""

    identity: bytes
    request: str


@dataclass(frozen=True)
class Pending:
    """A question that a worker has not answered yet. `finish` makes the reply of the answer."""

    caller: Caller
    job: str
    finish: Callable[[Answered], Message]


class Server:
    """`run` serves until `close` is asked. Handlers get the server and reach runs, queue, services and registry through it."""

    def __init__(self, home: Home, workers: str = "engine.workers") -> None:
        self.home = home
        self.session = uuid.uuid4().hex[:12]
        self.started = time.time()
        self.seq = 0
        self._closing = False
        self._closing_when_idle = False
        self.registry = Registry(home.registry)
        self.telemetry: Telemetry | None = None
        self._pending: dict[str, Pending] = {}
        self._subscribers: set[bytes] = set()
        self._rung: set[str] = set()
        self._done: deque[Callable[[], None]] = deque()
        self._index_thread = ThreadPoolExecutor(1, "registry")
        self._threads = ThreadPoolExecutor(4, "background")
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)

        wire.make_socket_directory(home)
        self._context = zmq.Context()
        self._control = self._bind(wire.control_address(home))
        self._workers = self._bind(wire.workers_address(home))
        self._jobs_of: dict[bytes, str] = {}

        self.sampler = Sampler(home.root, lambda sample: self.call_soon(lambda: self._sampled(sample)))
        self.services = Services(home, workers, self.publish, self.instruct, self._broken)
        self.runs = Runs(home)
        self.queue = Queue(self.runs, workers, self.sampler.device_count)
        self.watch = Watch(self.runs, self.queue, self.publish, self.instruct, self.background)

    def _bind(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.router_mandatory = 1  # a vanished or overfull peer is an error here, not silence
        socket.sndhwm = 100_000
        socket.rcvhwm = 0
        socket.linger = 500
        socket.bind(address)
        return socket

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        take_over(self.runs, self.queue, self.watch, self.registry.load(), self.store)
        self.sampler.start()
        poller = zmq.Poller()
        for source in (self._control, self._workers, self._wake_read):
            poller.register(source, zmq.POLLIN)
        timers = [
            (FLUSH, self._flush),
            (SECOND, self._each_second),
            (MINUTE, self._thin),
            (FOREIGN, lambda: refresh_foreign(self.runs, self.watch)),
        ]
        due = [(time.monotonic(), period, action) for period, action in timers]
        while not self._closing:
            wait = min(when for when, _, _ in due) - time.monotonic()
            ready = dict(poller.poll(max(0, int(wait * 1000) + 1)))
            if self._wake_read in ready:
                os.read(self._wake_read, 65536)
            if self._workers in ready:
                self._drain(self._workers, self._from_worker)
            if self._control in ready:
                self._drain(self._control, self._from_client)
            while self._done:
                self._done.popleft()()
            now = time.monotonic()
            for index, (when, period, action) in enumerate(due):
                if now >= when:
                    action()
                    due[index] = (time.monotonic() + period, period, action)
        self._end()

    def _drain(self, socket: zmq.Socket[bytes], take: Callable[[bytes, bytes], None]) -> None:
        """Take what waits, a thousand messages at most before the other socket has its turn."""
        for _ in range(1000):
            try:
                identity, payload = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            take(identity, payload)

    def close(self) -> None:
        """End the loop; jobs go on, and the next supervisor adopts them. Safe in a signal handler."""
        self._closing = True
        os.write(self._wake_write, b"!")

    def close_when_idle(self) -> None:
        """End the loop when the jobs that are being ended have ended."""
        self._closing_when_idle = True

    def _end(self) -> None:
        self._flush()
        self.publish(Closing())
        self.sampler.stop()
        self._index_thread.shutdown(wait=True)
        self._threads.shutdown(wait=True)
        self.registry.close()
        self._context.destroy(linger=500)

    # ── threads ───────────────────────────────────────────────────────────────────────────────────────────────────

    def call_soon(self, action: Callable[[], None]) -> None:
        """From any thread: run `action` in the loop."""
        self._done.append(action)
        os.write(self._wake_write, b"!")

    def background(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """`work` in a thread, then `then` in the loop. A failure of `work` is ours: it goes to the log, and `then` still runs."""

        def done(future: Future[None]) -> None:
            if error := future.exception():
                traceback.print_exception(error)
            self.call_soon(then)

        self._threads.submit(work).add_done_callback(done)

    def reply_later(self, caller: Caller, work: Callable[[], Message], *, index: bool = False) -> None:
        """Reply with what `work` returns, from the registry's thread (`index`) or another."""

        def done(future: Future[Message]) -> None:
            error = future.exception()
            if error is not None:
                self.call_soon(lambda: self._reply_problem(caller, error))
            else:
                self.call_soon(lambda: self.reply(caller, future.result()))

        (self._index_thread if index else self._threads).submit(work).add_done_callback(done)

    # ── clients ───────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, body: Body) -> None:
        self.seq += 1
        if not self._subscribers:
            return
        event = Event(session=self.session, seq=self.seq, time=time.time(), body=wire.raw(body))
        payload = wire.encode(event)
        for identity in list(self._subscribers):
            try:
                self._control.send_multipart([identity, wire.EVENT, payload], zmq.NOBLOCK)
            except zmq.Again:
                pass  # it reads too slowly: it will see the gap and attach again
            except zmq.ZMQError:
                self._subscribers.discard(identity)

    def subscribe(self, caller: Caller) -> None:
        self._subscribers.add(caller.identity)

    def reply(self, caller: Caller, result: Message) -> None:
        self._send_reply(caller, Reply(id=caller.request, result=wire.raw(result)))

    def _reply_problem(self, caller: Caller, error: BaseException) -> None:
        if isinstance(error, ProblemError):
            problem = error.problem
        else:
            text = "".join(traceback.format_exception(error))
            print(text, flush=True)
            problem = Problem(
                code="engine.bug",
                title="The engine made a mistake",
                cause=repr(error),
                hint="see engine.log; please report it",
                traceback=text,
            )
        self._send_reply(caller, Reply(id=caller.request, problem=problem))

    def _send_reply(self, caller: Caller, reply: Reply) -> None:
        try:
            self._control.send_multipart([caller.identity, wire.REPLY, wire.encode(reply)], zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # the client left before its answer

    def _reachable(self, client: bytes) -> bool:
        """Whether a client is still connected; told by a reply to nothing, which it passes over."""
        try:
            self._control.send_multipart([client, wire.REPLY, wire.encode(Reply(id=""))], zmq.NOBLOCK)
        except zmq.Again:
            return True  # it reads too slowly, but it is there
        except zmq.ZMQError:
            return False
        return True

    def _from_client(self, identity: bytes, payload: bytes) -> None:
        try:
            request = wire.decode(payload, Request)
        except msgspec.MsgspecError:
            return  # nothing to answer to: not even an id
        caller = Caller(identity, request.id)
        try:
            if request.protocol != PROTOCOL:
                raise ProblemError(wire.protocol_mismatch(request.protocol))
            if request.operation not in OPERATIONS:
                raise ProblemError(
                    Problem(
                        code="engine.unknown_operation",
                        title=f"The engine knows no operation {request.operation!r}",
                        hint="restart the older side",
                    )
                )
            message = wire.decode(request.body, OPERATIONS[request.operation][0])
            result = HANDLERS[request.operation](self, caller, message)
        except msgspec.MsgspecError as error:
            self._reply_problem(
                caller,
                ProblemError(
                    Problem(code="request.malformed", title=f"A malformed '{request.operation}'", cause=str(error))
                ),
            )
        except Exception as error:  # noqa: BLE001 - a client's request must never end the supervisor
            self._reply_problem(caller, error)
        else:
            if result is not None:
                self.reply(caller, result)

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def instruct(self, identity: bytes, instruction: Instruction | CancelInstruction) -> None:
        try:
            self._workers.send_multipart([identity, wire.encode(instruction)], zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # it has just died: `reap` will say so, and settle what waits for its answer

    def expect(self, caller: Caller, job: str, instruction: Instruction, finish: Callable[[Answered], Message]) -> None:
        """Remember whose question this is; the answer comes through `_answered`, or a problem when the worker dies."""
        self._pending[instruction.id] = Pending(caller, job, finish)

    def _from_worker(self, identity: bytes, payload: bytes) -> None:
        try:
            message = wire.decode_from_worker(payload)
        except msgspec.MsgspecError as error:
            print(f"a worker said something unknown: {error}", flush=True)
            return
        if isinstance(message, Joined):
            self._jobs_of[identity] = message.job
            if message.job in self.runs.records:
                self.watch.joined(self.runs.records[message.job], message.rank, identity)
            else:
                self.services.joined(message.job, message.pid, message.start_time, identity)
        elif isinstance(message, Written):
            self._rung.add(message.job)
        elif isinstance(message, Heartbeat) and message.job in self.runs.records:
            self.watch.heard(self.runs.records[message.job], message.rank)
        elif isinstance(message, Answered):
            self._answered(message)
        elif identity in self._jobs_of and isinstance(message, Said):
            self.services.said(self._jobs_of[identity], message)
        elif isinstance(message, Status) and self._jobs_of.get(identity) in self.services.warm:
            self.services.reported(self._jobs_of[identity], message)

    def _answered(self, answer: Answered) -> None:
        pending = self._pending.pop(answer.id, None)
        if pending is None:
            return
        if answer.problem is not None:
            self._reply_problem(pending.caller, ProblemError(answer.problem))
            return
        if pending.job in self.runs.records:
            self.watch.ingest(self.runs.records[pending.job])
        self.reply(pending.caller, pending.finish(answer))

    def _broken(self, job: str, problem: Problem) -> None:
        """The worker that was to answer is gone."""
        for key in [key for key, pending in self._pending.items() if pending.job == job]:
            self._reply_problem(self._pending.pop(key).caller, ProblemError(problem))

    def _settle_questions(self, record: Record) -> None:
        """The run has ended: whoever asked it to stop has what they wanted, everybody else a problem."""
        asked = [key for key, pending in self._pending.items() if pending.job == record.run.id]
        if record.run.state in (states.STOPPED, states.COMPLETED):
            for key in asked:
                pending = self._pending.pop(key)
                self.reply(pending.caller, pending.finish(Answered(id=key, step=record.run.step)))
        elif asked:
            self._broken(
                record.run.id,
                Problem(code="run.not_live", title=f"{record.run.id} is {record.run.state}", cause=record.run.reason),
            )

    # ── timers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _flush(self) -> None:
        """Read the journals that rang, notice the dead, start what can start, then tell and store all that changed."""
        rung, self._rung = self._rung, set()
        for job in rung:
            record = self.runs.records.get(job)
            if record is not None and self.watch.ingest(record):
                self._rung.add(job)
        self.watch.reap()
        self.services.reap()
        self.queue.schedule()
        self.settle()
        if self._closing_when_idle and not self.runs.live():
            self._closing = True

    def settle(self) -> None:
        """Tell and store all that has changed."""
        for record in self.watch.changed():
            if record.run.state in states.ENDED:
                self._settle_questions(record)
            self.store(record)

    def store(self, record: Record) -> None:
        """Hand what the registry lacks to its thread."""
        run = msgspec.structs.replace(record.run, metrics=dict(record.run.metrics))
        points, told = record.drain()
        if run.id in self.runs.records:
            self._index_thread.submit(self._store, run, record.offset, points, told)

    def _store(self, run: Run, offset: int, points: list[Point], told: list[tuple[int, bytes]]) -> None:
        try:
            self.registry.store(run, offset, points, told)
        except Exception:  # noqa: BLE001 - an index that cannot be written (disk full) is rebuilt later; the journals hold all
            traceback.print_exc()

    def _each_second(self) -> None:
        for record in self.runs.records.values():
            if record.unwritten:
                record.write_notes()
        for record in self.runs.live():
            if record.ranks:
                self.publish(Ranks(run=record.run.id, ranks=sorted(record.ranks.values(), key=lambda rank: rank.rank)))
            if record.leader is not None:
                self._rung.add(record.run.id)  # a bell may have been lost; the journal is not
        self.watch.listen()
        self.services.end_left(self._reachable)

    def _sampled(self, sample: Telemetry) -> None:
        self.telemetry = sample
        self.publish(sample)
        self._index_thread.submit(self.registry.add_telemetry, sample)

    def _thin(self) -> None:
        self._index_thread.submit(self.registry.thin_telemetry, time.time())

    def connection(self) -> wire.Connection:
        """What the connection file says of this supervisor."""
        return wire.Connection(
            pid=os.getpid(),
            start_time=wire.start_time(os.getpid()),
            protocol=PROTOCOL,
            session=self.session,
            host=host_name(),
            control=wire.control_address(self.home),
            workers=wire.workers_address(self.home),
        )
