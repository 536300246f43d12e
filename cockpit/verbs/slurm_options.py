"""What the Slurm job of a chat worker asks for: what the run's own job asked for, and what the command line adds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from cockpit.language.translate import tr
from engine.protocol.client import Client
from engine.protocol.messages import ProblemError, RunRef

MEANINGLESS = ("nodes", "save_before", "requeue")
"""Settings of `launch.slurm` that are a run's alone: a chat has one node, and ends with its client."""


def read_slurm_options(options: argparse.Namespace) -> Callable[[Client], dict[str, Any]] | None:
    """The function that finds the settings of `launch` for the job; None without `--via slurm`. Raises
    ValueError for options that do not go together."""
    if options.via is None:
        if options.slurm:
            raise ValueError(tr("--slurm needs --via slurm"))
        return None
    if options.hot:
        raise ValueError(tr("--hot asks the run's own process: leave out --via"))
    from engine.config.overrides import parse_value

    given: dict[str, Any] = {}
    for each in options.slurm:
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(tr("--slurm {each} is not of the form K=V, e.g. --slurm gres=gpu:1", each=each))
        if name in MEANINGLESS:
            raise ValueError(
                tr("--slurm {name} is for runs: a chat worker has one node and is never queued again", name=name)
            )
        given[name] = parse_value(value) if name == "extra" else value

    def find(client: Client) -> dict[str, Any]:
        launch = _read_run(client, options.target)
        return launch | {"slurm": launch.get("slurm", {}) | given}

    return find


def _read_run(client: Client, target: str) -> dict[str, Any]:
    """Of `launch` of the run that the target names, what a service's job takes; nothing where it names none."""
    try:
        text = client.request("show", RunRef(run=target.partition("@")[0])).profile_text
    except ProblemError:
        return {}
    from ruamel.yaml import YAML, YAMLError

    try:
        document = YAML(typ="safe").load(text) or {}
        launch = document.get("launch") or {}
        found = {name: value for name in ("slurm", "environment") if (value := dict(launch.get(name) or {}))}
        return found | ({"python": launch["python"]} if launch.get("python") else {})
    except (YAMLError, AttributeError, TypeError, ValueError):  # a damaged profile
        return {}
