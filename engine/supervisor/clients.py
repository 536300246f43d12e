"""The control socket's clients: replies go to whoever asked, events to everybody who has attached.

A client that does not read costs a bounded number of bytes. Beyond `MOST_EVENTS` it misses events, sees the gap and
attaches again; beyond `MOST_REPLIES` it gets no replies either, and what waits for it is dropped.
"""

from __future__ import annotations

import time
import traceback
import uuid
from collections import deque
from dataclasses import dataclass, field

import zmq

from engine.protocol import wire
from engine.protocol.messages import Body, Event, Message, Problem, ProblemError, Reply

MOST_EVENTS = 8 << 20
"""Bytes that wait for one client before it misses events."""
MOST_REPLIES = 64 << 20
"""Bytes that wait for one client before all of them are dropped."""
RETRY = (0.005, 0.2)
"""Seconds before what waits is tried again: at first, and at last for a client that does not read."""


@dataclass
class Outbox:
    """What waits for one client that reads more slowly than is sent."""

    messages: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    size: int = 0

    def append(self, kind: bytes, payload: bytes) -> None:
        self.messages.append((kind, payload))
        self.size += len(payload)


@dataclass(frozen=True)
class Caller:
    """Whom a reply goes to."""

    identity: bytes
    request: str


class Clients:
    """Sends over the control socket, and never blocks.

    `session` names this supervisor's run; `seq` numbers what it has published within it.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.session = uuid.uuid4().hex[:12]
        self.seq = 0
        self._socket = socket
        self.ignored = 0
        """Messages that could not be read."""
        self.retry = RETRY[0]
        """Seconds until `drain` should be called again, while something waits."""
        self._subscribers: set[bytes] = set()
        self._outboxes: dict[bytes, Outbox] = {}

    def subscribe(self, caller: Caller) -> None:
        """Send this client every event from now on."""
        self._subscribers.add(caller.identity)

    def publish(self, body: Body) -> None:
        """Number an event and send it to every subscriber."""
        self.seq += 1
        if not self._subscribers:
            return
        event = Event(session=self.session, seq=self.seq, time=time.time(), body=wire.encode_raw(body))
        payload = wire.encode(event)
        for identity in list(self._subscribers):
            self._post(identity, wire.EVENT, payload, MOST_EVENTS)

    def reply(self, caller: Caller, result: Message) -> None:
        try:
            encoded = wire.encode_raw(result)
        except Exception as error:  # noqa: BLE001 - whoever asked must get an answer
            self.reply_with_error(caller, error)
        else:
            self._send(caller, Reply(id=caller.request, result=encoded))

    def reply_with_error(self, caller: Caller, error: BaseException) -> None:
        """Send a ProblemError's problem as it is; any other exception is a mistake of ours and also goes to the log."""
        if isinstance(error, ProblemError):
            problem = error.problem
        else:
            text = "".join(traceback.format_exception(error))
            print(text, flush=True)
            problem = Problem(
                code="engine.bug",
                title="The engine has an internal error",
                cause=repr(error),
                hint="please report it, with engine.log",
                traceback=text,
            )
        self._send(caller, Reply(id=caller.request, problem=problem))

    def is_reachable(self, client: bytes) -> bool:
        """Whether a client is still connected. Sends a reply to no request, which the client ignores."""
        return client in self._outboxes or self._try(client, wire.REPLY, wire.encode(Reply(id=""))) is not None

    @property
    def waiting(self) -> bool:
        """Whether something waits for a client to read."""
        return bool(self._outboxes)

    def drain(self) -> None:
        """Send what waits, as far as it goes."""
        sent = False
        for identity, outbox in list(self._outboxes.items()):
            while outbox.messages:
                done = self._try(identity, *outbox.messages[0])
                if done is None:
                    outbox.messages.clear()
                elif done:
                    sent = True
                    outbox.size -= len(outbox.messages.popleft()[1])
                else:
                    break
            if not outbox.messages:
                del self._outboxes[identity]
        self.retry = RETRY[0] if sent else min(2 * self.retry, RETRY[1])

    def _send(self, caller: Caller, reply: Reply) -> None:
        try:
            payload = wire.encode(reply)
        except Exception:  # noqa: BLE001 - text that is no Unicode, such as a file's name in a message
            traceback.print_exc()
            payload = wire.encode(
                Reply(
                    id=caller.request,
                    problem=Problem(
                        code="engine.bug",
                        title="The engine cannot encode its reply",
                        cause="it holds text that is not Unicode",
                        hint="please report it, with engine.log",
                    ),
                )
            )
        self._post(caller.identity, wire.REPLY, payload, MOST_REPLIES)

    def _post(self, identity: bytes, kind: bytes, payload: bytes, most: int) -> None:
        """Send a message now, or after those that wait already; drop it when more than `most` bytes wait."""
        outbox = self._outboxes.get(identity)
        if outbox is None:
            if self._try(identity, kind, payload) is not False:
                return
            outbox = self._outboxes[identity] = Outbox()
        if outbox.messages and outbox.size + len(payload) > most:
            if kind == wire.REPLY:
                self._subscribers.discard(identity)
                outbox.messages.clear()
                outbox.size = 0
                print(f"a client does not read its replies: {most >> 20} MiB were dropped", flush=True)
            return
        outbox.append(kind, payload)

    def _try(self, identity: bytes, kind: bytes, payload: bytes) -> bool | None:
        """Whether ZeroMQ took the message; None when the client has gone."""
        try:
            self._socket.send_multipart([identity, kind, payload], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            self._subscribers.discard(identity)
            return None
        return True
