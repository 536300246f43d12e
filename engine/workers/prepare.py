"""The prepare stage of a run: pulls the base when it is missing, turns the profile's data into tokens, writes `prepared.json`.

It writes no `End` when all went well, for the run goes on with another worker and the same journal; a failure ends the run.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.config.profile import ProfileError, parse
from engine.protocol import stages
from engine.protocol.home import Home, RunDirectory, write_private
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.worker_link import Link
from engine.workers.journalling import Journal

_DROPPING = {"clean": (), "dedup": ("exact", "near", "held_out")}
"""Stages that leave rows out, and their counts by kind."""


def warnings(prepared: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(message, hint) for what was left out or cut, though not so much that the run was refused."""
    if prepared["rejected"]:
        yield f"{prepared['rejected']} bad rows are left out", f"they are named in {prepared['rejects']}"
    if expanded := prepared["expanded"]:
        yield from _of_expansion(expanded)
    for note in (prepared["vocabulary"] or {}).get("notes", ()):
        yield f"the tokenizer that was trained: {note}", "look at model.tokenizer"
    for stage in prepared["stages"]:
        if stage["name"] in _DROPPING and stage["rejected"]:
            kinds = ", ".join(f"{stage[key]} {key.replace('_', ' ')}" for key in _DROPPING[stage["name"]] if stage[key])
            by_rule = ", ".join(f"{count} {rule}" for rule, count in stage.get("rules", {}).items() if count)
            yield (
                f"{stage['name']} left out {stage['rejected']} of {stage['in']} rows of {stage['part']} ({kinds or by_rule})",
                f"they are named in {prepared['rejects']}",
            )
    for part, counts in prepared["stats"].items():
        if counts["masked"]:
            yield (
                f"{counts['masked']} rows of {part} are left out: cut before their reply begins",
                "raise data.max_length",
            )
        if counts["truncated"] > counts["masked"]:
            yield f"{counts['truncated'] - counts['masked']} rows of {part} are cut at the end", "raise data.max_length"
        if counts.get("unwritten"):
            yield (
                f"the chat template leaves out tools or tool calls {counts['unwritten']} times in {part}: the model does not see them",
                "name a template in data.template that writes them",
            )


def _of_expansion(expanded: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if expanded["rejected"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in expanded["reasons"].items())
        yield (
            f"{expanded['rejected']} expanded rows were not taken ({reasons})",
            f"they are named in {expanded['rejects']}",
        )
    if expanded["stopped"]:
        yield (
            f"{expanded['rows']} rows were expanded, fewer than asked for: {expanded['stopped']}",
            (
                "raise the limit, or go on with these"
                if "limit" in expanded["stopped"]
                else "look at the reasons above; another temperature or prompt in data.expand asks anew"
            ),
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
    link = Link(arguments.address, arguments.job, arguments.attempt)
    journal = Journal(run, arguments.attempt, link)
    try:
        _prepare(run, home, journal)
        return 0
    except ProblemError as error:
        journal.fail(error.problem)
    except ProfileError as error:
        journal.fail(Problem(title="The run's profile does not hold any more", cause=str(error)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the run must say it
        journal.fail(
            Problem(
                title="Preparing the data failed",
                cause=f"{type(error).__name__}: {error}",
                traceback=traceback.format_exc(),
            )
        )
    finally:
        link.close()
    return 1


def _prepare(run: RunDirectory, home: Home, journal: Journal) -> None:
    from engine.prep.pin_base import pin_base
    from engine.prep.prepare import is_expanded, prepare
    from engine.training.online.checks import describe_reward_model

    job = json.loads((run.path / "job.json").read_bytes())
    directory = Path(job["directory"])
    profile = parse(run.profile.read_text(encoding="utf-8"), str(run.profile), directory, home=home)
    if (fixed := pin_base(profile, home, journal.progress)) != profile:
        profile = fixed
        write_private(run.profile, profile.to_yaml().encode())
    if job.get("first") == stages.PREPARE and not is_expanded(profile, home, journal.progress):
        raise ProblemError(
            Problem(
                title="There is nothing to begin with prepare on",
                cause="the rows that data.expand asks for are not all there, and only the stage expand may ask the service",
                hint="cockpit train --from expand",
            )
        )
    reward = describe_reward_model(profile.method, profile.directory, home)
    prepared = prepare(profile, home, journal.progress) | reward
    for message, hint in warnings(prepared):
        journal.warn(message, hint)
    write_private(run.prepared, json.dumps(prepared, ensure_ascii=False).encode())


if __name__ == "__main__":
    sys.exit(main())
