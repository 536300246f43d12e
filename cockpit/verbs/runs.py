"""Verbs on runs: list, show, control and delete them."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from typing import Any

import msgspec

from cockpit.language.translate import tr, tr_engine
from cockpit.state.formatting import format_age, format_duration, format_size
from cockpit.state.run_filter import parse_filter
from cockpit.verbs import run_files
from cockpit.verbs.follow import watch
from cockpit.verbs.output import console, emit, format_metric, say, show_problem, table
from engine.config.diagnosis import list_advice
from engine.protocol import states
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import (
    AttemptEnd,
    CheckpointInfo,
    Command,
    Continue,
    ListRuns,
    Problem,
    ProblemError,
    Run,
    RunDetail,
    RunRef,
    Set,
    Stop,
    Taken,
    Telemetry,
)

BOUNDARY = 600.0
"""Seconds that a command may wait for a step to end: evaluations and first steps of large models take long."""


def runs(options: argparse.Namespace) -> int:
    if options.state and options.state not in states.STATES:
        raise ValueError(
            tr("there is no state {state!r}: {STATES}", state=options.state, STATES=", ".join(states.STATES))
        )
    wanted = parse_filter(" ".join(options.filter))
    with Client(Home.locate(options.home)) as client:
        found: list[Run] = client.request("runs", ListRuns(state=options.state)).runs
    found = [run for run in found if wanted.matches(run)]
    if options.json:
        emit([_summary(run) for run in found])
    elif found:
        table(("RUN", "STATE", "STEP", "LOSS", "BASE", "AGE"), map(_row, found))
        for run in found:
            if run.state == states.QUEUED and run.reason:
                say(f"{run.id} {tr_engine(run.reason)}")
            for advice in list_advice(run.metrics)[:1] if run.state == states.RUNNING else ():
                say(f"{run.id} {tr_engine(advice.message)}: {tr_engine(advice.hint)}")
    else:
        some = options.state or options.filter
        say(tr("No run fits.") if some else tr("There are no runs yet: cockpit demo"))
    return 0


def _summary(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "kind": run.kind,
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "code": run.code,
        "position": run.position,
        "holders": [msgspec.structs.asdict(holder) for holder in run.holders],
        "host": run.host,
        "profile": run.profile,
        "stage": run.stage,
        "stages": run.stages,
        "step": run.step,
        "max_steps": run.max_steps,
        "epoch": run.epoch,
        "attempt": run.attempt,
        "created": run.created,
        "directory": run.directory,
        "metrics": run.metrics,
        "advice": [each._asdict() for each in list_advice(run.metrics)],
        "problem": run.problem,
        "tags": run.tags,
        "note": run.note,
        "pinned": run.pinned,
        "group": run.group,
        "priority": run.priority,
        "learning_rate": run.learning_rate,
    }


def _row(run: Run) -> tuple[str, ...]:
    progress = f"{run.step}/{run.max_steps}" if run.max_steps else str(run.step)
    loss = format_metric(run.metrics.get("train/loss"))
    marks = f"{run.base}{' ★' if run.pinned else ''}{''.join(f' #{tag}' for tag in run.tags)}"
    return run.id, tr(run.state), progress, loss, marks, format_age(run.created)


def show(options: argparse.Namespace) -> int:
    with Client(Home.locate(options.home)) as client:
        detail: RunDetail = client.request("show", RunRef(run=options.run))
    if options.json:
        emit(
            _summary(detail.run)
            | {
                "checkpoints": [
                    {
                        "step": each.step,
                        "path": each.path,
                        "metrics": each.metrics,
                        "best": each.best,
                        "bytes": each.bytes,
                    }
                    for each in detail.checkpoints
                ],
                "pids": detail.pids,
                "ledger": [msgspec.structs.asdict(line) for line in detail.ledger],
                "warnings": detail.warnings,
                "hosts": detail.hosts,
                "attempts": detail.attempts,
            }
        )
    else:
        _print_detail(detail)
    return 0


def _describe_host(sample: Telemetry) -> str:
    """A host that the run is on, in a line."""
    host = sample.host
    parts = [
        tr(
            "{name}: CPU {cpu_percent:.0f} %, memory {memory_used:.0f} of {memory_total:.0f} GB",
            name=host.name,
            cpu_percent=host.cpu_percent,
            memory_used=host.memory_used / 1e9,
            memory_total=host.memory_total / 1e9,
        )
    ]
    for device in sample.devices:
        used = tr(
            "{memory_used:.0f} of {memory_total:.0f} GB",
            memory_used=(device.memory_used or 0) / 1e9,
            memory_total=(device.memory_total or 0) / 1e9,
        )
        parts.append(f"{device.name} {device.index}: {device.utilisation or 0:.0f} %, {used}")
    return "; ".join(parts)


def _print_detail(detail: RunDetail) -> None:
    run = detail.run
    spent = (run.ended or time.time()) - run.started if run.started else 0.0
    lines = {
        "run": run.id,
        "state": f"{tr(run.state)} ({tr_engine(run.reason)})" if run.reason else tr(run.state),
        "stage": tr("{stage} of {stages}", stage=run.stage or "none yet", stages=", ".join(run.stages))
        if len(run.stages) > 3
        else "",
        "profile": run.profile,
        "base": f"{run.base} · {run.method} · {run.adapter}",
        "step": tr(
            "{step} of {max_steps}, epoch {epoch:.2f}, attempt {attempt}",
            step=run.step,
            max_steps=run.max_steps or "?",
            epoch=run.epoch,
            attempt=run.attempt,
        ),
        "time": tr("age {created}", created=format_age(run.created))
        + (tr(", this attempt {spent}", spent=format_duration(spent)) if spent else ""),
        "tags": f"{'pinned ' * run.pinned}{' '.join(run.tags)}",
        "note": run.note,
        "directory": run.directory,
        "processes": " ".join(map(str, detail.pids)) or "none",
        "metrics": "  ".join(f"{name} {format_metric(value)}" for name, value in sorted(run.metrics.items()))
        or tr("none yet"),
    }
    for name, value in lines.items():
        if value:
            print(f"{name:<12}{value}")
    for advice in list_advice(run.metrics):
        print(f"{'advice':<12}{tr_engine(advice.message)}: {tr_engine(advice.hint)}")
    for sample in detail.hosts:
        print(f"{'host':<12}{_describe_host(sample)}")
    for each in detail.checkpoints:
        print(_checkpoint_line(each))
    for end in detail.attempts:
        print(f"{'attempt ' + str(end.attempt):<12}{describe_end(end)}")
    for change in detail.ledger:
        print(
            tr(
                "{value:<12}step {step}: {name} {old} → {new}",
                value="ledger",
                step=change.step,
                name=change.name,
                old=change.old,
                new=change.new,
            )
        )
    for warning in detail.warnings:
        print(f"{'warning':<12}{warning}")
    if run.problem is not None:
        sys.stdout.flush()
        show_problem(run.problem)


def describe_end(end: AttemptEnd) -> str:
    """How an attempt ended, and why."""
    why = tr_engine(end.problem.title if end.problem else end.reason)
    return tr("{state} at step {step}", state=end.state, step=end.step or 0) + (f": {why}" if why else "")


def _checkpoint_line(checkpoint: CheckpointInfo) -> str:
    metrics = "  ".join(f"{name} {format_metric(value)}" for name, value in sorted(checkpoint.metrics.items()))
    mark = " (best)" if checkpoint.best else ""
    size = f"  {format_size(checkpoint.bytes)}" if checkpoint.bytes else ""
    return f"{'checkpoint':<12}{checkpoint.path}{mark}{size}  {metrics}".rstrip()


def metrics(options: argparse.Namespace) -> int:
    run = run_files.find_run(Home.locate(options.home), options.run)
    found = run_files.read_metrics(run, options.name)
    for point in found if options.all else run_files.latest_values(found):
        if options.json:
            emit(point)
        else:
            print(
                f"{point['step']}\t{point['name']}\t{_exact(point['value'])}\t{point['time']:.3f}\t{point['attempt']}"
            )
    return 0


def _exact(value: float | None) -> str:
    """All digits of the journal; `nan` for a value that was not finite."""
    return "nan" if value is None else repr(value)


def logs(options: argparse.Namespace) -> int:
    run = run_files.find_run(Home.locate(options.home), options.run)
    while options.follow and not run.log.exists() and run_files.read_state(run) in states.LIVE:
        time.sleep(0.2)
    if not run.log.exists():
        say(tr("{id} has no log yet", id=run.id))
        return 0
    # Universal newlines: a progress bar's carriage returns become lines.
    with open(run.log, encoding="utf-8", errors="backslashreplace") as log:
        ended = False
        while True:
            shutil.copyfileobj(log, sys.stdout)
            sys.stdout.flush()
            if not options.follow or ended:
                return 0
            # One more round reads what was printed between the last read and the end.
            ended = run_files.read_state(run) not in states.LIVE
            if not ended:
                time.sleep(0.2)


def stop(options: argparse.Namespace) -> int:
    """Returns when the run has ended: its last checkpoint is written, and it can be resumed."""
    with Client(Home.locate(options.home)) as client:
        taken: Taken = client.request("stop", Stop(run=options.run, now=options.now), BOUNDARY)
        run = next(run for run in watch(client, taken.run) if run.state in states.ENDED)
    return _print_taken(Taken(run=run.id, state=run.state, step=run.step), options.json)


def pause(options: argparse.Namespace) -> int:
    return _command("pause", options)


def continue_(options: argparse.Namespace) -> int:
    if options.skip and options.rollback:
        raise ValueError(tr("give either --skip or --rollback; --rollback skips the rows too"))
    choice = "skip" if options.skip else "rollback" if options.rollback else ""
    with Client(Home.locate(options.home)) as client:
        message = Continue(run=options.run, choice=choice)
        return _print_taken(client.request("continue", message, BOUNDARY), options.json)


def _command(name: str, options: argparse.Namespace) -> int:
    with Client(Home.locate(options.home)) as client:
        return _print_taken(client.request(name, Command(run=options.run), BOUNDARY), options.json)


def set_(options: argparse.Namespace) -> int:
    changes = parse_changes(options.changes)
    with Client(Home.locate(options.home)) as client:
        return _print_taken(client.request("set", Set(run=options.run, changes=changes), BOUNDARY), options.json)


def _print_taken(taken: Taken, as_json: bool) -> int:
    if as_json:
        emit({"run": taken.run, "state": taken.state, "step": taken.step})
    else:
        print(tr("{run} is {state} at step {step}", run=taken.run, state=taken.state, step=taken.step))
    return 0


def parse_changes(changes: list[str]) -> dict[str, Any]:
    """Parse `a.b=c` pairs, with values as YAML. Raises ValueError."""
    from engine.config.overrides import split_override

    parsed = {}
    for change in changes:
        try:
            keys, value = split_override(change)
        except ValueError as error:
            raise ValueError(f"{change!r}: {error}") from None
        parsed[".".join(map(str, keys))] = value
    return parsed


def delete(options: argparse.Namespace) -> int:
    """Delete one run. A prefix is shown as the run that it means, and asked about; a script says --yes."""
    with Client(Home.locate(options.home)) as client:
        run: Run = client.request("show", RunRef(run=options.run)).run
        if run.state in states.LIVE:
            raise ProblemError(
                Problem(
                    code="run.live",
                    title=tr("{id} is {state}", id=run.id, state=run.state),
                    hint=tr("cockpit stop {id}", id=run.id),
                )
            )
        if not options.yes and not _agrees_to_delete(run, options.run):
            say(tr("{id} is kept", id=run.id))
            return 1
        client.request("delete", RunRef(run=run.id), BOUNDARY)
    if options.json:
        emit({"run": run.id, "deleted": True})
    else:
        print(tr("{id} is deleted", id=run.id))
    return 0


def _agrees_to_delete(run: Run, named: str) -> bool:
    """Ask on a terminal. Without one, the run's whole id is enough, and anything else is refused."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        say(
            tr(
                "{id}: {name}, {state} at step {step:,}, with all checkpoints in {directory}",
                id=run.id,
                name=run.name,
                state=run.state,
                step=run.step,
                directory=run.directory,
            )
        )
        console().print(tr("Delete it permanently? [y/N] "), end="", markup=False)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    if named == run.id:
        return True
    raise ProblemError(
        Problem(
            code="request.unconfirmed",
            title=tr("{named} means {id}, which is not deleted", named=named, id=run.id),
            cause=tr("without a terminal nobody can be asked"),
            hint=tr("cockpit delete {id}, or --yes to delete what {named} means", id=run.id, named=named),
        )
    )
