"""The control socket's clients: replies go to whoever asked, events to everybody who has attached."""

from __future__ import annotations

import time
import traceback
import uuid
from dataclasses import dataclass

import zmq

from engine.protocol import wire
from engine.protocol.messages import Body, Event, Message, Problem, ProblemError, Reply


@dataclass(frozen=True)
class Caller:
    """Whom a reply goes to."""

    identity: bytes
    request: str


class Clients:
    """Sends over the control socket, and never blocks: a client that reads too slowly misses events and attaches again.

    `session` names this supervisor's run; `seq` numbers what it has published within it.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.session = uuid.uuid4().hex[:12]
        self.seq = 0
        self._socket = socket
        self._subscribers: set[bytes] = set()

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
            try:
                self._socket.send_multipart([identity, wire.EVENT, payload], zmq.NOBLOCK)
            except zmq.Again:
                pass  # the client reads too slowly: it will see the gap and attach again
            except zmq.ZMQError:
                self._subscribers.discard(identity)

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
        try:
            self._socket.send_multipart([client, wire.REPLY, wire.encode(Reply(id=""))], zmq.NOBLOCK)
        except zmq.Again:
            return True  # it reads too slowly, but it is there
        except zmq.ZMQError:
            return False
        return True

    def _send(self, caller: Caller, reply: Reply) -> None:
        try:
            self._socket.send_multipart([caller.identity, wire.REPLY, wire.encode(reply)], zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # the client left before its answer
