"""The prose, the commands and the examples of the pages that `reference` writes."""

from __future__ import annotations

from typing import Any

from engine.protocol.journal import (
    Adopted,
    AnyEntry,
    BadBatch,
    BadRow,
    Checkpoint,
    End,
    Evaluation,
    Exit,
    Launched,
    Ledger,
    Memory,
    Metrics,
    Phase,
    Queued,
    Sample,
    Start,
    State,
    Warn,
)

PROTOCOL_TEXT = {
    "introduction": """
# Protocol

This page is generated from the definitions in the modules that `engine/protocol/messages.py` gathers by \
`python -m engine.protocol.reference >
docs/protocol.md`; a test fails when it is out of date.

It describes version {version} of the protocol in which the cockpit, the engine's supervisor and its workers talk to
each other. What they leave on disk is in [journals.md](journals.md).

## Sockets and encoding

The supervisor binds two ZeroMQ `ROUTER` sockets, `control` for clients and `workers` for workers. Clients and workers
connect one `DEALER` socket each. Both are Unix sockets in a directory that only the user can read, in the home where
that works, else on the local disk. `engine/<host>/connection.json` in the home names both addresses, and the
supervisor's process. The addresses change when the supervisor has to bind anew, because a socket's file was removed:
clients and workers read the file again whenever they have lost the connection. They connect only where directory,
socket and listening process belong to their own user, and the supervisor refuses other users.

Messages are maps in [MessagePack](https://msgpack.org); JSON would carry the same. A message with a `type` has that
field as its tag. Types are written in Python's notation, so that `None` is MessagePack's nil. Fields that have their
default value are left out, and fields that the receiver does not know are ignored: a field with a default can be
added without a new version.

A client sends one frame, a request. The supervisor sends two: `R` and a reply, or `E` and an event. Workers and the
supervisor send each other one frame. What cannot be read is ignored and counted. For a client that does not read, 8 MiB
of events and 64 MiB of replies wait, and no more.
""",
    "envelopes": """
Every request and reply has the version of the protocol. When the two differ, the supervisor refuses the request with
a problem that says which side is older and how to restart it. The same happens in a client whose reply has another
version.

A reply has either a result or a problem. Replies to one client may come in another order than its requests.

Events are numbered. `attach` returns a snapshot with a `session` and a `seq`, and the client then receives every
event from `seq + 1` on. A session lasts as long as the supervisor's process. A client that sees an event of another
session, or a number that does not follow the one before, has missed something and attaches again. It does the same
after three seconds without any event, since telemetry comes every second. A client that reads too slowly loses
events, and never slows the supervisor or a run down. Metrics and telemetry may be coalesced; changes of state and the
events of services never are.
""",
    "operations": """
Every operation can also be refused with a problem for these reasons: the versions of the protocol differ, the
operation is unknown, its body cannot be decoded, or the engine has made a mistake, which is then in `engine.log` too.

The reply to a command (`stop`, `pause`, `continue`, `save`, `evaluate`, `set`, `stacks`) comes when the worker has
taken it, at its next step boundary, and has that step.
""",
    "requests": """
These are the bodies of requests and replies. `Nothing` has no fields.
""",
    "events": """
These are the bodies of events, which every attached client receives. A client ignores events whose type it does not
know.
""",
    "from_worker": """
A worker writes to its journal first, and sends a message second: what the supervisor misses it reads from the file.
The worker's socket reconnects by itself, and the worker then sends `joined` again, so that a new supervisor finds its
adopted workers. A worker never waits for the supervisor.

Only rank 0 of a run writes a journal and takes commands. Every rank sends heartbeats, once a second.
""",
    "to_worker": """
Rank 0 takes instructions and answers each with the same id. All ranks of a run take a command at the same step
boundary, which they agree on through their process group. The supervisor holds instructions for a worker that has not
joined yet.

`stop` with `now` is no instruction: the supervisor sends SIGTERM to the run's processes, and SIGKILL to those that
are left after one second.
""",
    "parts": """
These occur inside the messages above.
""",
}

COMMANDS = (
    ("`stop`", "Save a checkpoint, and end.", ""),
    ("`pause`", "Wait at the step boundary until `continue`.", ""),
    (
        "`continue`",
        "Go on after a pause.",
        "`choice`: `skip` or `rollback`, for a batch that is held back",
    ),
    ("`save`", "Save a checkpoint.", ""),
    ("`evaluate`", "Evaluate on the held-out rows.", ""),
    ("`set`", "Change settings from the next step on.", "the settings by dotted key"),
    ("`generate`", "Answer a prompt with the weights as they are now.", "as for the chat service"),
    ("`stacks`", "Write the stacks of all threads of all ranks to the log.", ""),
)
"""(command, meaning, arguments) of the instructions that a training worker takes."""

JOURNALS = {
    "introduction": """
# Journals

This page is generated from the definitions in `engine/protocol/journal.py` and `engine/protocol/states.py` by `python
-m engine.protocol.reference journals > docs/journals.md`; a test fails when it is out of date.

A run's directory, `runs/<id>/` in the home, holds everything that is known about the run. Two files in it are its
journals. The registry (`registry.db`) is only an index of them, which `cockpit engine reindex` builds again.

## Rules

- Each journal has one writer: rank 0 of the worker writes `events.jsonl`, the supervisor `lifecycle.jsonl`. Both are
  append-only.
- Each line is one JSON object. `kind` says which entry it is; `time` is in seconds since the epoch; `attempt` counts
  the starts of the run's worker from 1. Fields with their default value are left out. A reader passes over a line
  whose kind it does not know.
- A line that has been written survives `kill -9` of any process. Start, checkpoints, ledger entries, bad batches,
  changes of state, starts and ends of processes are also synced to the disk at once, and survive a crash of the host.
- A crash may leave an incomplete last line. Readers ignore it, and the next writer cuts it off before it appends. A
  write that the disk refuses leaves the file as it was; the entry is written again when there is room.
- After a resume, the later attempt's value of a step takes the place of the earlier one. `cockpit metrics` prints the
  values that count, and with `--all` those of every attempt.
- Numbers that JSON cannot express, infinity and not-a-number, are `null`.

Other ranks than 0 write no journal: their phase, step and memory are in the heartbeats that they send to the
supervisor (see [protocol.md](protocol.md)), and the stacks of their threads go to `log.txt`. Samples of the host and
its devices are in the registry, one per second for the last hour and one per minute before.
""",
    "events": """
Written by rank 0 of the worker. Besides the fields in the tables, every entry has `kind`, `time` and `attempt`.
""",
    "lifecycle": """
Written by the supervisor. A `warning` entry has the same fields as in `events.jsonl`.
""",
    "parts": """
These occur inside the entries above.
""",
    "states": """
The last `state` entry of `lifecycle.jsonl` is the run's state. The supervisor makes only the transitions in the table
below, and publishes a state after it has been written.
""",
}

_IDENTITY = "0f8f2a5e-9d5c-4b57-8a30-5d1f0f6b7c11/183240"
_AT: dict[str, Any] = {"time": 1767225600.0, "attempt": 1}

EXAMPLES: dict[str, AnyEntry] = {
    "start": Start(
        **_AT,
        max_steps=60,
        epochs=1.0,
        steps_per_epoch=60.0,
        processes=1,
        global_batch=8,
        parameters=134515008,
        trainable_parameters=4884480,
        rows=480,
        trained_tokens=38211,
        facts={"device": "cuda:0", "dtype": "bfloat16"},
    ),
    "metrics": Metrics(**_AT, step=12, epoch=0.2, values={"train/loss": 0.4321, "train/learning_rate": 0.0003}),
    "phase": Phase(**_AT, name="evaluating", done=16, total=32),
    "checkpoint": Checkpoint(
        **_AT,
        step=50,
        path="/home/ada/.cockpit/runs/triples-qlora-0101-120000-1a2b/checkpoints/step-00000050",
        metrics={"eval/loss": 0.2871},
        best=True,
        removed=[25],
    ),
    "evaluation": Evaluation(**_AT, step=50, values={"eval/loss": 0.2871, "eval/json_validity": 1.0}, seconds=6.2),
    "sample": Sample(
        **_AT,
        step=50,
        prompt="Extract the triples: Ada Lovelace wrote the first program.",
        reply='[{"subject": "Ada Lovelace", "subject_type": "person", "predicate": "wrote", '
        '"object": "the first program", "object_type": "work"}]',
        scores={"triples_f1": 1.0},
    ),
    "ledger": Ledger(**_AT, step=12, code="mark.setting", name="training.learning_rate", old=0.0003, new=0.0001),
    "bad_batch": BadBatch(
        **_AT,
        code="pause.loss_not_finite",
        step=31,
        reason="loss not finite",
        rows=[BadRow(row=204, text="Extract the triples: …", tokens=97, file="triples/train.jsonl", line=205)],
        total=8,
    ),
    "warning": Warn(**_AT, code="data.rows.cut", message="3 rows of train are truncated", hint="raise data.max_length"),
    "memory": Memory(
        **_AT,
        source="forecast",
        device_bytes=14_200_000_000,
        host_bytes=31_000_000_000,
        disk_bytes=12_000_000_000,
        seconds=10_800.0,
        error_percent=6.3,
        strategy="zero2",
        verdict="fits",
    ),
    "end": End(**_AT, step=60, status="completed"),
    "state": State(**_AT, state="paused", reason="disk low", code="pause.disk_low", step=31),
    "queued": Queued(**_AT, priority=5, place=1767225590.5),
    "launched": Launched(**_AT, pid=4711, start_time=1767225598.25, identity=_IDENTITY, stage="train", devices=[0]),
    "adopted": Adopted(**_AT, pid=4711),
    "exit": Exit(**_AT, pid=4711, status=0),
}
"""An entry of each kind."""
