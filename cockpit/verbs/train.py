"""Verbs that start a job and follow it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from cockpit.verbs.follow import follow
from cockpit.verbs.output import emit, number, say, show_problem
from cockpit.verbs.profile import load_profile
from cockpit.verbs.runs import parse_changes
from engine.protocol import states
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Resume, Run, Submit

PASSED_ON = (
    "HF_*",
    "HUGGING_FACE_*",
    "MODELSCOPE_*",
    "WANDB_*",
    "NCCL_*",
    "CUDA_VISIBLE_DEVICES",
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
)
"""Variables of the submitting shell that every job gets; nothing else of it reaches the job."""


def train(options: argparse.Namespace) -> int:
    overrides = list(options.overrides)
    if options.output_dir:
        overrides.append(f"checkpoint.output={os.path.abspath(options.output_dir)}")
    return start("train", options.profile, overrides, options)


def prepare(options: argparse.Namespace) -> int:
    return start("prepare", options.profile, options.overrides, options)


def start(kind: str, profile: str, overrides: list[str], options: argparse.Namespace) -> int:
    home = Home.locate(options.home)
    message = submission(kind, profile, overrides, home)
    with Client(home) as client:
        return _see_through(client, client.request("submit", message), options)


def submission(kind: str, name: str, overrides: list[str], home: Home) -> Submit:
    """A checked profile, ready to be queued. Raises ProfileError."""
    path, profile = load_profile(name, overrides, home)
    return Submit(
        kind=kind,
        profile=profile.to_yaml(),
        source=str(path),
        directory=str(profile.directory.absolute()),
        environment=environment(profile.resolved(), os.environ),
        output=profile.checkpoint.output or "",
    )


def environment(profile: Mapping[str, Any], shell: Mapping[str, str]) -> dict[str, str]:
    """What a job gets from the submitting shell: the fixed list, and what the profile names.

    `launch.environment` names a variable by giving it no value; a value that the profile does give stands.
    """
    given = profile["launch"]["environment"]
    named = {name for name, value in given.items() if not value} | set(_key_variables(profile))
    return {
        name: value
        for name, value in shell.items()
        if not given.get(name) and (name in named or any(fnmatchcase(name, pattern) for pattern in PASSED_ON))
    }


def _key_variables(node: Any) -> Iterator[str]:
    """The variables that `*_api_key_env` settings name, wherever they stand."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key.endswith("api_key_env") and isinstance(value, str):
                yield value
            yield from _key_variables(value)
    elif isinstance(node, list):
        for item in node:
            yield from _key_variables(item)


def resume(options: argparse.Namespace) -> int:
    run, at, step = options.run.partition("@")
    if at and not step.isdigit():
        raise ValueError(f"{options.run!r}: write the checkpoint as RUN@STEP, for instance {run}@200")
    message = Resume(
        run=run,
        step=int(step) if at else None,
        changes=parse_changes(options.overrides),
        environment=environment({"launch": {"environment": {}}}, os.environ),
    )
    with Client(Home.locate(options.home)) as client:
        return _see_through(client, client.request("resume", message), options)


def _see_through(client: Client, run: Run, options: argparse.Namespace) -> int:
    """Follow the run to its end, or leave it at once with `--detach`. Returns the exit status."""
    if options.detach:
        print(run.id)
        return 0
    run = follow(client, run.id)
    if options.json:
        emit(outcome(run))
    else:
        print(f"{run.id} is {run.state} at step {run.step}")
        for name, value in sorted(run.metrics.items()):
            print(f"  {name:<28}{number(value)}")
    explain_end(run)
    return exit_status(run)


def outcome(run: Run) -> dict[str, Any]:
    """`run state step metrics`, and the problem of a run that has one."""
    document = {"run": run.id, "state": run.state, "step": run.step, "metrics": run.metrics}
    return document | ({"problem": run.problem} if run.problem else {})


def explain_end(run: Run) -> None:
    """On stderr: why it failed, or how to go on."""
    if run.problem is not None:
        show_problem(run.problem)
    elif run.state == states.STOPPED:
        say(f"go on with it: cockpit resume {run.id}")
    elif run.state == states.COMPLETED and run.kind == "train":
        say(f"talk to it: cockpit chat {run.id}")


def exit_status(run: Run) -> int:
    """A stopped run did what it was told: only `failed` and `lost` are failures."""
    return 1 if run.state in (states.FAILED, states.LOST) else 0
