"""`cockpit train`, `prepare` and `resume`: start a job and follow it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import msgspec

from cockpit import remote_names
from cockpit.connection.submission import build_submission, resume_environment
from cockpit.language.translate import tr
from cockpit.state.formatting import counted
from cockpit.verbs.follow import follow
from cockpit.verbs.output import emit, format_metric, say, say_warning, show_problem
from cockpit.verbs.profile import load_profile
from cockpit.verbs.runs import parse_changes
from engine.config import stage_plan
from engine.config.profile import list_notes
from engine.protocol import stages, states
from engine.protocol.client import Client
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Resume, Run, RunRef

PREPARED = ("rows", "tokens", "trained_tokens", "rejected", "rejects", "train", "validation", "tokenizer", "expanded")
"""Keys of `prepared.json` that `prepare` reports."""
_REPORTED = ("stages", "passed", "thresholds", "test", "benchmarks", "export")
"""Keys of report.json that `train` reports."""


def train(options: argparse.Namespace) -> int:
    overrides = list(options.overrides)
    if options.output_dir:
        overrides.append(f"checkpoint.output={os.path.abspath(options.output_dir)}")
    if options.no_rehearsal:
        overrides.append("training.rehearsal=false")
    if options.grid:
        if options.first or options.output_dir:
            raise ValueError(
                tr("--grid does not go with {option}", option="--from" if options.first else "--output-dir")
            )
        from cockpit.verbs.grid import train_grid  # it needs more than a single run does

        return train_grid(options, overrides, exit_status)
    return start("train", options.profile, overrides, options)


def prepare(options: argparse.Namespace) -> int:
    return start("prepare", options.profile, options.overrides, options)


def start(kind: str, profile: str, overrides: list[str], options: argparse.Namespace) -> int:
    home = Home.locate(options.home)
    first = (options.first or "") if kind == "train" else ""
    path, checked = load_profile(profile, overrides, home, rows=first not in (*stages.AFTER, stages.TRAIN))
    for remark in (*checked.remarks, *checked.doubts):
        say(str(remark))
    message = build_submission(checked, kind, str(path), checked.checkpoint.output or "")
    if kind == "train":
        message.first = first
        message.group = options.group
        say(
            tr(
                "{name} is valid; its stages: {list_stages}",
                name=path.name,
                list_stages=", ".join(stage_plan.list_stages(checked)),
            )
        )
    for note in list_notes(checked, home):
        say(note, "yellow")
    with Client(home) as client:
        return _follow_or_detach(client, client.request("submit", message), options)


def resume(options: argparse.Namespace) -> int:
    run, at, step = options.run.partition("@")
    if at and not step.isdecimal():
        raise ValueError(
            tr("{given!r}: write the checkpoint as RUN@STEP, for instance {run}@200", given=options.run, run=run)
        )
    if at and options.from_step is not None:
        raise ValueError(tr("{run!r} names the step already: leave --from-step out", run=options.run))
    if options.steps is not None and options.more is not None:
        raise ValueError(tr("give either --steps, the last step, or --more, how many are added"))
    changes = parse_changes(options.overrides)
    with Client(Home.locate(options.home)) as client:
        found: Run = client.request("show", RunRef(run=run)).run
        chosen = int(step) if at else options.from_step
        if last := find_last_step(options, found.step if chosen is None else chosen):
            changes["training.max_steps"] = last
        message = Resume(
            run=found.id,
            step=chosen,
            changes=changes,
            environment=resume_environment(found.directory),
        )
        return _follow_or_detach(client, client.request("resume", message), options)


def find_last_step(options: argparse.Namespace, begin: int) -> int | None:
    """The step until which a run goes on that begins at `begin`; None for that of its profile. Raises ValueError."""
    last: int | None = options.steps if options.more is None else begin + options.more
    if last is not None and last <= begin:
        raise ValueError(
            tr(
                "the run goes on from step {begin}: its last step must be a later one than {last}",
                begin=begin,
                last=last,
            )
        )
    return last


def watch(options: argparse.Namespace) -> int:
    """Follow a run that was started elsewhere or before. The exit status is that of `train`."""
    with Client(Home.locate(options.home)) as client:
        return _follow(client, client.request("show", RunRef(run=options.run)).run, options)


def _follow_or_detach(client: Client, run: Run, options: argparse.Namespace) -> int:
    """Follow the run to its end; with `--detach` print its id. Returns the exit status."""
    say_warning(client)
    if options.detach:
        print(run.id)
        return 0
    return _follow(client, run, options)


def _follow(client: Client, run: Run, options: argparse.Namespace) -> int:
    run = follow(client, run.id)
    if options.json:
        emit(outcome(run))
    else:
        _print_outcome(run)
    explain_end(run)
    return exit_status(run)


def outcome(run: Run) -> dict[str, Any]:
    """`run state step metrics`, the problem if there is one, and the counts of a job that only prepares."""
    document = {"run": run.id, "state": run.state, "step": run.step, "metrics": run.metrics}
    document |= {key: value for key, value in read_report(run).items() if key in _REPORTED}
    if run.problem is not None:
        document["problem"] = run.problem
    if run.kind == "prepare" and run.state == states.COMPLETED:
        prepared = msgspec.json.decode(RunDirectory(Path(run.directory)).prepared.read_bytes())
        document["prepared"] = {name: prepared.get(name) for name in PREPARED}
    return document


def read_report(run: Run) -> dict[str, Any]:
    """report.json of a completed run; empty for any other."""
    path = RunDirectory(Path(run.directory)).report
    if run.state != states.COMPLETED or run.kind != "train" or not path.is_file():
        return {}
    report = msgspec.json.decode(path.read_bytes())
    return report if isinstance(report, dict) else {}


def _print_outcome(run: Run) -> None:
    document = outcome(run)
    print(
        tr("{id} is {state}", id=run.id, state=run.state) + (tr(" at step {step}", step=run.step) if run.step else "")
    )
    for line in stage_lines(document):
        print(line)
    for name, value in sorted(run.metrics.items()):
        if "." not in name:  # a part of another metric, such as one predicate's
            print(f"  {name:<28} {format_metric(value)}")
    for name, value in document.get("prepared", {}).items():
        if value is not None:
            print(f"  {name.replace('_', ' '):<28}{_format_expansion(value) if name == 'expanded' else value}")


def _format_expansion(expanded: dict[str, Any]) -> str:
    tokens = expanded["prompt_tokens"] + expanded["reply_tokens"]
    return tr(
        "{rows} rows, {dropped} dropped, {tokens} tokens, cost {cost:g}",
        rows=expanded["rows"],
        dropped=expanded["dropped"],
        tokens=tokens,
        cost=expanded["cost"],
    )


def stage_lines(document: dict[str, Any]) -> list[str]:
    """A line for each stage, when the run does more than train, and for each threshold."""
    done = document.get("stages", [])
    lines = [f"  ✓ {stage:<9} {_stage_result(stage, document)}".rstrip() for stage in done] if len(done) > 3 else []
    return [*lines, *map(_format_threshold, document.get("thresholds", ()))]


def _stage_result(stage: str, document: dict[str, Any]) -> str:
    """The result of a stage in a few words."""
    match stage:
        case stages.TRAIN:
            return counted(document["step"], "step")
        case stages.EVALUATE:
            parts = {"data.test": document.get("test"), "benchmarks": document.get("benchmarks")}
            found = [
                tr("{rows} of {name}", rows=counted(part["rows"], "row"), name=name)
                for name, part in parts.items()
                if part
            ]
            step = next(part["step"] for part in parts.values() if part)
            return tr("{found}, checkpoint of step {step}", found=", ".join(found), step=step)
        case stages.EXPORT:
            exported = document["export"]
            return tr(
                "{kind} in {directory}{format_agreement}",
                kind=exported["kind"],
                directory=exported["directory"],
                format_agreement=_format_agreement(exported["agreement"]),
            )
    return ""


def _format_agreement(agreement: dict[str, Any]) -> str:
    if agreement.get("kl") is None:
        return ""
    golden = (
        tr(
            ", golden prompts {golden_equal} of {golden}",
            golden_equal=agreement["golden_equal"],
            golden=agreement["golden"],
        )
        if agreement.get("golden")
        else ""
    )
    return tr(
        ": KL {kl}, top-1 {top1}{golden}",
        kl=format_metric(agreement["kl"]),
        top1=format_metric(agreement["top1"]),
        golden=golden,
    )


def _format_threshold(each: dict[str, Any]) -> str:
    value = tr("not measured") if each["value"] is None else format_metric(each["value"])
    return f"  {'✓ passed' if each['passed'] else '✗ MISSED'}  {each['threshold']}  ({value})"


def explain_end(run: Run) -> None:
    """Print to stderr why the run failed, or what to do next."""
    if run.problem is not None:
        show_problem(run.problem)
    elif run.state == states.STOPPED:
        say(tr("continue it with: {command} resume {id}", command=remote_names.command, id=run.id))
    elif run.state == states.COMPLETED and run.kind == "train":
        if run.method == "reward":
            say(
                tr(
                    "it scores replies; list its checkpoints with: {command} show {id}",
                    command=remote_names.command,
                    id=run.id,
                )
            )
        elif read_report(run).get("recurrent"):
            checkpoint = RunDirectory(Path(run.directory)).checkpoint(run.step)
            say(
                tr(
                    "a recurrent model cannot chat here: load {checkpoint} with transformers, and use its generate()",
                    checkpoint=checkpoint,
                )
            )
        else:
            say(tr("talk to it with: {command} chat {id}", command=remote_names.command, id=run.id))


def exit_status(run: Run) -> int:
    """1 for a run that failed or was lost, or that missed a threshold. A stopped run is not a failure."""
    return 1 if run.state in (states.FAILED, states.LOST) or not read_report(run).get("passed", True) else 0
