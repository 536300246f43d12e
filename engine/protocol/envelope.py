"""The envelopes that requests, replies and events travel in."""

from __future__ import annotations

import msgspec

from engine.protocol.problem import Problem

PROTOCOL = 1
"""The version. Peers of different versions refuse each other; `wire.protocol_mismatch` says which to restart."""


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of all messages. Unknown fields are ignored, so that a field can be added without a new version of the
    protocol."""


class Request(Message, kw_only=True):
    """Asks for `operation`, with a request message as `body`. The reply has the same `id`."""

    id: str
    operation: str
    protocol: int = PROTOCOL
    body: msgspec.Raw = msgspec.Raw(b"\x80")  # an empty msgpack map


class Reply(Message, kw_only=True):
    """Answers the request with the same `id`: with a reply message as `result`, or with a `problem`."""

    id: str
    protocol: int = PROTOCOL
    result: msgspec.Raw = msgspec.Raw(b"\x80")
    problem: Problem | None = None


class Event(Message, kw_only=True):
    """Carries one published event as `body`. `seq` counts within `session`: after a gap, or in another session, the
    client attaches again. `time` is seconds since the epoch."""

    session: str
    seq: int
    time: float
    body: msgspec.Raw
