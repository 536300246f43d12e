"""Ranks on other hosts: the command that runs on each of them, and the one here that starts and watches these."""

from __future__ import annotations

import json
import sys

from engine.options.launch import LaunchOptions


def build_node_command(
    module: str,
    arguments: list[str],
    *,
    node: str,
    count: int,
    launch: LaunchOptions,
    processes: int | None = None,
) -> list[str]:
    """The command line of one node's part of a job (`engine.workers.node`). `node` is its number, or `slurm`."""
    ranks = launch.processes if processes is None else processes
    port = launch.port if isinstance(launch.port, int) else 0
    own = ["--worker", module, "--node", node, "--nodes", str(count), "--processes", str(ranks), "--port", str(port)]
    return [launch.python or sys.executable, "-P", "-m", "engine.workers.node", *own, *arguments]


def build_command(worker: list[str], launch: LaunchOptions) -> list[str]:
    """The command line of the process on this host that starts `worker` on all nodes, and watches them."""
    settings = launch.model_dump(include={"via", "nodes", "hosts", "min_nodes", "ssh_options", "python", "processes",
                                          "port", "environment", "devices"})  # fmt: skip
    module, *arguments = worker
    command = [sys.executable, "-P", "-m", "engine.workers.nodes", "--worker", module]
    return [*command, "--launch", json.dumps(settings), *arguments]
