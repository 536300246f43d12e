"""The prepare stage of a run: pulls the base when it is missing, turns the profile's data into tokens, and writes
`prepared.json`.

When it succeeds it writes no `End`, since another worker goes on with the same journal; a failure ends the run.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engine.config.profile import ProfileError, parse
from engine.protocol import attempt_fence, stages
from engine.protocol.home import Home, RunDirectory, write_private
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.worker_link import Link
from engine.workers.launch_forecast import forecast_run
from engine.workers.run_journal import RunJournal

_DROPPING_STAGES = {"clean": (), "dedup": ("exact", "near", "held_out")}
"""Stages that drop rows, and the names of their counts by kind."""


_LISTED = 10
"""Names in a remark."""


class Remark(NamedTuple):
    code: str
    message: str
    hint: str


def list_warnings(prepared: dict[str, Any]) -> Iterator[Remark]:
    """Remarks about rows that were dropped or cut, though not so many that the run was refused."""
    for damaged in prepared.get("damaged", ()):
        message = f"a damaged entry of the cache was made again ({damaged})"
        yield Remark(code="data.cache_damaged", message=message, hint="the disk may be failing: check it")
    if prepared["rejected"]:
        message = f"{prepared['rejected']} bad rows were dropped"
        yield Remark(code="data.rows.left_out", message=message, hint=f"they are listed in {prepared['rejects']}")
    if expanded := prepared["expanded"]:
        yield from _list_expansion_warnings(expanded)
    for note in (prepared["vocabulary"] or {}).get("notes", ()):
        message = f"the trained tokenizer: {note}"
        yield Remark(code="tokenizer.note", message=message, hint="see model.tokenizer")
    yield from _list_reading_warnings(prepared)
    for stage in prepared["stages"]:
        if stage["name"] in _DROPPING_STAGES and stage["rejected"]:
            kinds = ", ".join(
                f"{stage[key]} {key.replace('_', ' ')}" for key in _DROPPING_STAGES[stage["name"]] if stage[key]
            )
            by_rule = ", ".join(f"{count} {rule}" for rule, count in stage.get("rules", {}).items() if count)
            yield Remark(
                code="data.rows.cleaned",
                message=f"{stage['name']} left out {stage['rejected']} of {stage['in']} rows of {stage['part']} "
                f"({kinds or by_rule})",
                hint=f"they are listed in {prepared['rejects']}",
            )
    for part, counts in prepared["stats"].items():
        if counts["masked"]:
            message = f"{counts['masked']} rows of {part} were dropped: their reply starts beyond data.max_length"
            yield Remark(code="data.rows.cut", message=message, hint="raise data.max_length")
        if counts["truncated"] > counts["masked"]:
            message = f"{counts['truncated'] - counts['masked']} rows of {part} are truncated"
            yield Remark(code="data.rows.cut", message=message, hint="raise data.max_length")
        if left_out := {name: rows for name, rows in counts.get("unwritten", {}).items() if rows}:
            named = ", ".join(f"{name.replace('_', ' ')} of {rows} rows" for name, rows in left_out.items())
            yield Remark(
                code="template.leaves_out",
                message=f"the chat template leaves out {named} in {part}: the model never sees them",
                hint="name a template in data.template that writes them",
            )
        if unrolled := counts.get("turns", {}).get("unrolled"):
            yield Remark(
                code="template.unrolled",
                message=f"{unrolled} conversations of {part} were unrolled into several sequences, each with the "
                "prompt that chat would send: the chat template changes earlier turns once later ones follow",
                hint="each reply is still trained once; data.turns: together makes one sequence of each conversation, "
                "with replies as the template writes them in history",
            )
    if prepared.get("thought_opening"):
        yield Remark(
            code="template.opens_thought",
            message="the base's chat template opens a thought before each reply; with data.thinking: keep, this run's "
            "template opens none, so that chat sends what training has",
            hint="set data.thinking to require if every reply of the data has a thought, or to empty if none has one "
            "and chat shall go on to open it",
        )


def _list_reading_warnings(prepared: dict[str, Any]) -> Iterator[Remark]:
    """What was read and not used, or not read at all. (Older preparations do not say.)"""
    for source in prepared.get("left_out", ()):
        yield Remark(
            code="data.files.left_out",
            message=f"{len(source['files'])} files of {source['source']} are not in {source['part']}, because they are "
            f"named for another split: {', '.join(source['files'][:_LISTED])}{' …' * (len(source['files']) > _LISTED)}",
            hint="to read them, name them as sources of their own",
        )
    for stage in prepared["stages"]:
        if stage["name"] == "validate" and stage.get("unused_columns"):
            columns = ", ".join(
                f"{name} ({rows:,} rows)" for name, rows in list(stage["unused_columns"].items())[:_LISTED]
            )
            more = len(stage["unused_columns"]) - _LISTED
            yield Remark(
                code="data.columns.unused",
                message=f"columns of {stage['part']} that are not used: {columns}{f' and {more} more' * (more > 0)}",
                hint="name the format of the source, or its columns, if one of them should be trained on",
            )
        if stage["name"] == "exclude":
            yield Remark(
                code="data.rows.excluded",
                message=f"data.exclude names {stage['listed']} of {stage['in']} training rows, and leaves out "
                f"{stage['dropped']}",
                hint="nothing to do; rows that have been changed since the list was made are no longer named by it",
            )
        if stage["name"] == "split" and stage.get("cut"):
            yield Remark(
                code="data.split.cut",
                message=f"{stage['cut']} held-out rows are similar to rows that are trained on: so many rows are "
                "similar that their share could not be held out otherwise",
                hint="let data.dedup drop similar rows first, or name held-out files of your own",
            )


def _list_expansion_warnings(expanded: dict[str, Any]) -> Iterator[Remark]:
    if warning := expanded.get("warning"):
        yield Remark(code="service.plain_http", message=warning, hint="write https:// in data.expand.base_url")
    if expanded["rejected"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in expanded["reasons"].items())
        yield Remark(
            code="expand.rejected",
            message=f"{expanded['rejected']} expanded rows were rejected ({reasons})",
            hint=f"they are listed in {expanded['rejects']}",
        )
    if expanded["stopped"]:
        limited = expanded.get("limited", False)  # older expansions do not say
        yield Remark(
            code="expand.limit" if limited else "expand.stalled",
            message=f"{expanded['rows']} rows were expanded, fewer than requested: {expanded['stopped']}",
            hint="raise the limit, or continue with these rows"
            if limited
            else "see the reasons above; change the temperature or prompt in data.expand to request again",
        )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    home = Home(arguments.home)
    run = home.run(arguments.job)
    attempt_fence.hold(run.path, arguments.attempt)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home)
    journal = RunJournal(run, arguments.attempt, link)
    try:
        _prepare(run, home, journal)
        return 0
    except ProblemError as error:
        journal.fail(error.problem)
    except ProfileError as error:
        journal.fail(Problem(code="profile.outdated", title="The run's profile is no longer valid", cause=str(error)))
    except Exception as error:  # noqa: BLE001 - any failure must be in the run's journal
        journal.fail(
            Problem(
                code="stage.failed",
                title="Preparing the data failed",
                cause=f"{type(error).__name__}: {error}",
                traceback=traceback.format_exc(),
            )
        )
    finally:
        link.close()
    return 1


def _prepare(run: RunDirectory, home: Home, journal: RunJournal) -> None:
    from engine.models import tokenizers
    from engine.prep.pin_base import pin_base
    from engine.prep.prepare import is_expanded, prepare
    from engine.training.online.checks import describe_reward_model

    job = json.loads((run.path / "job.json").read_bytes())
    directory = Path(job["directory"])
    profile = parse(run.profile.read_text(encoding="utf-8"), str(run.profile), directory, home=home)
    if (pinned := pin_base(profile, home, journal.progress)) != profile:
        profile = pinned
        write_private(run.profile, profile.to_yaml().encode())
    if job.get("first") == stages.PREPARE and not is_expanded(profile, home, journal.progress):
        raise ProblemError(
            Problem(
                code="expand.incomplete",
                title="The run cannot start at prepare",
                cause="rows of data.expand are missing, and only the stage expand sends requests to the service",
                hint="cockpit train --from expand",
            )
        )
    reward = describe_reward_model(profile.method, profile.directory, home)
    tokenizers.leave_out_torch()  # a base is merged or dequantised before
    prepared = prepare(profile, home, journal.progress) | reward
    for remark in list_warnings(prepared):
        journal.warn(remark.message, remark.hint, code=remark.code)
    write_private(run.prepared, json.dumps(prepared, ensure_ascii=False).encode())
    if job.get("kind") == "train":
        forecast_run(run, home, profile, journal)


if __name__ == "__main__":
    sys.exit(main())
