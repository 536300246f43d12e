"""Combinations of `launch` settings that cannot work, each reported by name before a run starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESERVED = ("--array", "-a", "--job-name", "-J", "--output", "-o", "--error", "-e", "--open-mode", "--signal",
            "--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--requeue", "--no-requeue", "--wrap", "--parsable",
            "--wait", "-W", "--test-only", "--help", "-h", "--usage", "--version", "-V")  # fmt: skip
"""Options of sbatch that the batch script has itself, or with which it does not run as one job."""
SHORTEST = 5
"""Characters of the shortest abbreviation that sbatch may take for one option."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_launch(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for each combination that cannot work."""
    launch = sections.get("launch")
    if not launch:
        return
    if launch.via == "local" and launch.nodes > 1:
        yield "launch.nodes", "needs launch.via: slurm, ssh or none, which start ranks on other hosts"
    if launch.via == "ssh":
        yield from _check_ssh(launch)
    elif launch.min_nodes is not None:
        yield "launch.min_nodes", f"is for launch.via ssh, not for {launch.via}: only there hosts can be left out"
    if launch.via == "slurm" and launch.job.nodes and launch.nodes not in (1, launch.job.nodes):
        yield "launch.slurm.nodes", f"is {launch.job.nodes}, and launch.nodes {launch.nodes}: leave one of them out"
    if launch.via == "slurm" and (limit := _read_time(launch.job.time)) and limit <= launch.job.save_before:
        yield (
            "launch.slurm.save_before",
            f"is {launch.job.save_before} s, and the time limit {limit} s: raise the limit",
        )
    for index, extra in enumerate(launch.job.extra):
        if option := _find_reserved(extra):
            yield f"launch.slurm.extra.{index}", f"{option} is set by cockpit, whose script would not work with another"
    for name in launch.environment:
        if not NAME.fullmatch(name):
            yield f"launch.environment.{name}", "is no name of a variable: letters, digits and _, no digit first"
    if launch.via != "local":
        if launch.wait_for is not None:
            yield "launch.wait_for", f"does not go with launch.via {launch.via}: the devices are not this host's"
        if isinstance(launch.devices, list) and launch.via == "slurm":
            yield (
                "launch.devices",
                "does not go with launch.via slurm, which chooses the devices: set launch.slurm.gres",
            )


def _find_reserved(extra: str) -> str:
    """The option of sbatch that this is, which may be abbreviated, if it is reserved."""
    name = re.split(r"[= ]", extra, maxsplit=1)[0]
    if not name.startswith("--"):
        return name[:2] if name[:2] in RESERVED else ""
    return next((full for full in RESERVED if full == name or (len(name) >= SHORTEST and full.startswith(name))), "")


def _check_ssh(launch: Any) -> Iterator[tuple[str, str]]:
    if not launch.hosts:
        yield "launch.hosts", "must name the hosts when launch.via is ssh"
        return
    if len(set(launch.hosts)) < len(launch.hosts):
        yield "launch.hosts", "names a host twice: set launch.processes for several ranks on one"
    if launch.nodes not in (1, len(launch.hosts)):
        yield "launch.nodes", f"is {launch.nodes}, and launch.hosts names {len(launch.hosts)}: leave launch.nodes out"
    if launch.min_nodes is not None and launch.min_nodes > len(launch.hosts):
        yield "launch.min_nodes", f"is more than the {len(launch.hosts)} hosts of launch.hosts"


def _read_time(text: str | None) -> int:
    """Seconds of a time limit as sbatch reads it: minutes, minutes:seconds, hours:minutes:seconds, with days before."""
    days, dash, rest = (text or "").rpartition("-")
    parts = [int(part) for part in rest.split(":") if part.isdigit()]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0, 0)[:3]
    elif len(parts) < 3:
        hours, minutes, seconds = (0, *parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = parts[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
