"""What the supervisor does on request. `HANDLERS` names one function an operation: it returns the reply, or None when
the reply comes later."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from engine.protocol import stages, states
from engine.protocol.home import host_name
from engine.protocol.messages import (
    PROTOCOL,
    Answer,
    Ask,
    Cancel,
    CancelInstruction,
    CleanQuery,
    Command,
    Continue,
    Instruction,
    Judgement,
    JudgementQuery,
    Judgements,
    Label,
    ListRuns,
    LogQuery,
    LogReply,
    Nothing,
    OpenService,
    Problem,
    ProblemError,
    Reorder,
    Resume,
    Run,
    RunList,
    RunRef,
    SeriesQuery,
    SeriesReply,
    Service,
    ServiceRef,
    Set,
    Shutdown,
    Snapshot,
    Stop,
    Submit,
    Taken,
    TelemetryHistory,
    TelemetryQuery,
    Trace,
    Welcome,
)
from engine.supervisor import cleaning, details, labels, refusal, votes
from engine.supervisor.clients import Caller
from engine.supervisor.run_record import Record
from engine.supervisor.server import Handler, Server


def hello(server: Server, caller: Caller, message: Nothing) -> Welcome:
    return Welcome(
        session=server.clients.session,
        pid=os.getpid(),
        protocol=PROTOCOL,
        home=str(server.home.root),
        host=host_name(),
        started=server.started,
        jobs=[record.run.id for record in server.runs.list_live()],
        services=server.services.list_services(),
        ignored=server.clients.ignored,
        notes=details.list_notes(server.home, server.registry),
        warm=server.ahead.describe(),
    )


def attach(server: Server, caller: Caller, message: Nothing) -> Snapshot:
    server.publish_changes()
    server.clients.subscribe(caller)
    server.ahead.want()
    return Snapshot(
        session=server.clients.session,
        seq=server.clients.seq,
        runs=[record.run for record in server.runs.records.values()],
        services=server.services.list_services(),
        telemetry=server.telemetry,
    )


def submit(server: Server, caller: Caller, message: Submit) -> Run | None:
    return refusal.submit(server, caller, message)


def runs(server: Server, caller: Caller, message: ListRuns) -> RunList:
    found = sorted((record.run for record in server.runs.records.values()), key=lambda run: run.created)
    return RunList(runs=[run for run in found if message.state in ("", run.state)])


def show(server: Server, caller: Caller, message: RunRef) -> None:
    record = server.runs.find(message.run)
    server.backlog.prefer(record)
    server.publish_changes()
    ranks = sorted(record.ranks.values(), key=lambda rank: rank.rank)
    run = msgspec.structs.replace(record.run, metrics=dict(record.run.metrics))
    pids = server.monitor.find_pids
    server.reply_later(
        caller, lambda: details.describe_run(server.registry, record, run, ranks, pids(record)), index=True
    )


def stop(server: Server, caller: Caller, message: Stop) -> Taken | None:
    record = server.runs.find(message.run)
    if record.run.state not in states.LIVE:
        raise _not_live_error(record)
    _check_local(server, record)
    if message.now or record.run.state in (states.QUEUED, states.PREPARING) or record.stage in stages.AFTER:
        server.monitor.stop_now(record)
        return _describe_command(record, record.run.step)
    if record.run.state != states.STOPPING:
        record.stop_requested = True
        record.move("stop")
    _instruct(server, caller, record, "stop", {})
    return None


def make_command_handler(name: str) -> Callable[[Server, Caller, Command], None]:
    """The handler of a command that a running worker takes at its next step boundary."""

    def handle(server: Server, caller: Caller, message: Command) -> None:
        _instruct(server, caller, _find_training(server, message), name, {})

    return handle


def continue_(server: Server, caller: Caller, message: Continue) -> None:
    arguments = {"choice": message.choice} if message.choice else {}
    _instruct(server, caller, _find_training(server, message), "continue", arguments)


def set_(server: Server, caller: Caller, message: Set) -> None:
    _instruct(server, caller, _find_training(server, message), "set", message.changes)


def trace(server: Server, caller: Caller, message: Trace) -> None:
    _instruct(server, caller, _find_training(server, message), "trace", {"steps": message.steps})


def _find_training(server: Server, message: RunRef) -> Record:
    """A run of this host that is training or paused. Raises ProblemError for any other."""
    record = server.runs.find(message.run)
    if record.run.state not in (states.RUNNING, states.PAUSED):
        raise _not_live_error(record)
    _check_local(server, record)
    if record.stage in stages.AFTER:
        raise ProblemError(
            Problem(
                code="run.past_training",
                title=f"{record.run.id} has finished training",
                cause=f"its stage is {record.stage}, and only training takes commands",
                hint=f"cockpit stop {record.run.id} stops it; cockpit resume continues with that stage",
            )
        )
    return record


def _instruct(server: Server, caller: Caller, record: Record, name: str, arguments: dict[str, Any]) -> None:
    instruction = Instruction(id=uuid.uuid4().hex, name=name, arguments=arguments)

    server.expect_answer(caller, record.run.id, instruction, lambda answer: _describe_command(record, answer.step))
    _send_or_hold(server, record, instruction)


def _send_or_hold(server: Server, record: Record, instruction: Instruction) -> None:
    """Send the instruction to the run's worker, or hold it until the worker has joined."""
    if record.files is not None:
        record.files.send(instruction)
    elif record.identity is not None:
        server.instruct(record.identity, instruction)
    else:
        record.held_instructions.append(instruction)


def _describe_command(record: Record, step: int) -> Taken:
    return Taken(run=record.run.id, state=record.run.state, step=step)


def _not_live_error(record: Record) -> ProblemError:
    mend = f"cockpit resume {record.run.id}" if record.run.state in states.ENDED else "wait until it runs"
    return ProblemError(
        Problem(code="run.not_live", title=f"{record.run.id} is {record.run.state}", cause=record.run.reason, hint=mend)
    )


def _check_local(server: Server, record: Record) -> None:
    if not server.runs.is_local(record):
        raise ProblemError(
            Problem(
                code="run.other_host",
                title=f"{record.run.id} belongs to {record.job.host}",
                hint=f"run cockpit on that host; this is {host_name()}",
            )
        )


def resume(server: Server, caller: Caller, message: Resume) -> Run:
    return server.queue.resume(server.runs.find(message.run), message)


def delete(server: Server, caller: Caller, message: RunRef) -> None:
    record = server.runs.find(message.run)
    server.monitor.delete(record)

    def forget() -> Nothing:
        server.registry.forget(record.run.id)
        return Nothing()

    server.reply_later(caller, forget, index=True)


def reorder(server: Server, caller: Caller, message: Reorder) -> Run:
    return server.queue.waiting.reorder(server.runs.find(message.run), message)


def label(server: Server, caller: Caller, message: Label) -> Run:
    record = server.runs.find(message.run)
    labels.change(record.directory, record.run, message)
    record.changed = True
    return record.run


def series(server: Server, caller: Caller, message: SeriesQuery) -> None:
    record = server.runs.find(message.run)
    server.backlog.prefer(record)
    server.publish_changes()

    def read() -> SeriesReply:
        found = [
            server.registry.read_series(record.run.id, name, message.points, message.first, message.last)
            for name in message.names
        ]
        return SeriesReply(run=record.run.id, series=found)

    server.reply_later(caller, read, index=True)


def log(server: Server, caller: Caller, message: LogQuery) -> None:
    path = server.runs.find(message.run).directory.log

    def read() -> LogReply:
        if not path.is_file():
            return LogReply(text="", offset=0)
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - message.limit) if message.offset is None else min(message.offset, size))
            text = file.read(message.limit)
            return LogReply(text=text.decode("utf-8", "replace"), offset=file.tell())

    server.reply_later(caller, read)


def clean(server: Server, caller: Caller, message: CleanQuery) -> None:
    in_use = [service.target for service in server.services.list_services()]
    server.reply_later(caller, lambda: cleaning.answer(server.home, server.runs.records, message, in_use))


def telemetry(server: Server, caller: Caller, message: TelemetryQuery) -> None:
    newest = server.telemetry.time if server.telemetry else server.started
    since = newest - message.seconds if message.first is None else message.first

    def read() -> TelemetryHistory:
        return TelemetryHistory(samples=server.registry.read_telemetry(since, message.last, message.points))

    server.reply_later(caller, read, index=True)


def shutdown(server: Server, caller: Caller, message: Shutdown) -> Nothing:
    live = server.runs.list_live()
    serving = [each.service.id for each in server.services.workers.values() if each.service.kind == "serve"]
    if (live or serving) and not message.force:
        names = ", ".join([*(record.run.id for record in live), *serving])
        raise ProblemError(
            Problem(
                code="engine.jobs_live",
                title="Jobs are running",
                cause=names,
                hint=(
                    "stop them first (`cockpit stop`, `cockpit serve --stop`), "
                    "or `cockpit engine stop --force` to end them now"
                ),
            )
        )
    for record in live:
        server.monitor.stop_now(record)
    for service in server.services.list_services():
        server.services.close(service.id)
    server.close_when_idle()
    return Nothing()


def reindex(server: Server, caller: Caller, message: Nothing) -> RunList:
    """Read every journal again from its start, and replace the rows of the index."""
    for record in server.runs.records.values():
        record.offset, more = 0, True
        while more:
            more = False
            with record.isolate():
                _, more = record.read_events()
            server.index(record)
            server.backlog.wait()
    return runs(server, caller, ListRuns())


def service_open(server: Server, caller: Caller, message: OpenService) -> Service:
    return server.services.open(message, caller.identity)


def service_ask(server: Server, caller: Caller, message: Ask) -> None:
    if message.service in server.runs.records:
        _generate_in_run(server, caller, message)
        return
    instruction = Instruction(
        id=uuid.uuid4().hex, name=message.question, arguments=message.arguments | {"request": message.request}
    )
    server.services.ask(message.service, instruction, caller.identity)
    server.expect_answer(caller, message.service, instruction, lambda answer: Answer(result=answer.result))


def _generate_in_run(server: Server, caller: Caller, message: Ask) -> None:
    """A run that is training answers one question, `generate`, from its own process, as a chat service would."""
    record = _find_training(server, RunRef(run=message.service))
    if message.question != "generate":
        raise ProblemError(
            Problem(
                code="request.unknown",
                title=f"A run that is training cannot answer {message.question!r}",
                hint="it only answers generate",
            )
        )
    arguments = message.arguments | {"request": message.request}
    instruction = Instruction(id=uuid.uuid4().hex, name="generate", arguments=arguments)
    server.expect_answer(caller, record.run.id, instruction, lambda answer: Answer(result=answer.result))
    _send_or_hold(server, record, instruction)


def service_cancel(server: Server, caller: Caller, message: Cancel) -> Nothing:
    record = server.runs.records.get(message.service)
    if record is not None:
        cancel = CancelInstruction(request=message.request)
        if record.files is not None:
            record.files.send(cancel)
        elif record.identity is not None:
            server.instruct(record.identity, cancel)
        return Nothing()
    server.services.cancel(message.service, message.request)
    return Nothing()


def service_close(server: Server, caller: Caller, message: ServiceRef) -> Nothing:
    server.services.close(message.service)
    return Nothing()


def judge(server: Server, caller: Caller, message: Judgement) -> None:
    votes.check_judgement(message)
    message.id, message.time = uuid.uuid4().hex, time.time()
    files = votes.find_files(server.runs, message.targets)
    # In the registry's thread: all judgements are written by one thread.
    server.reply_later(caller, lambda: votes.write(message, files), index=True)


def judgements(server: Server, caller: Caller, message: JudgementQuery) -> None:
    files = votes.find_files(server.runs, message.targets)
    server.reply_later(caller, lambda: Judgements(judgements=votes.read(files)), index=True)


HANDLERS: dict[str, Handler] = {
    "hello": hello,
    "attach": attach,
    "submit": submit,
    "runs": runs,
    "show": show,
    "stop": stop,
    **{name: make_command_handler(name) for name in ("pause", "save", "evaluate", "stacks")},
    "continue": continue_,
    "set": set_,
    "trace": trace,
    **{"resume": resume, "delete": delete},
    "reorder": reorder,
    "label": label,
    **{"series": series, "log": log, "telemetry": telemetry, "clean": clean},
    "shutdown": shutdown,
    "reindex": reindex,
    "service_open": service_open,
    "service_ask": service_ask,
    **{"service_cancel": service_cancel, "service_close": service_close},
    "judge": judge,
    "judgements": judgements,
}
