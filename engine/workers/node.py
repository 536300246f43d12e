"""One node's part of a job that runs on other hosts than the engine: it starts the ranks of its host.

Started by srun on each node of a Slurm job, by ssh on each of `launch.hosts`, or by hand. With several nodes it finds
the others through files in the run's directory, see `engine.workers.rendezvous`.
"""

from __future__ import annotations

import argparse
import os
import sys

from engine.hardware.listing import list_visible
from engine.protocol.environment import remove_launcher_variables
from engine.supervisor.launchers import local


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", required=True, help="the module of the worker")
    parser.add_argument("--node", required=True, help="the number of this node, or slurm")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", required=True, help="ranks on this host, or all")
    parser.add_argument("--port", type=int, default=0)
    arguments, rest = parser.parse_known_args()
    node = int(os.environ.get("SLURM_NODEID", 0)) if arguments.node == "slurm" else int(arguments.node)
    environment = remove_launcher_variables(os.environ)
    processes = count_processes(arguments.processes)
    worker = [arguments.worker, *rest]
    if arguments.nodes > 1:
        from engine.workers.rendezvous import launch

        return launch(worker, node, arguments.nodes, processes, arguments.port, environment)
    environment = local.build_rank_environment(environment, processes)
    command = local.build_command(worker, processes, arguments.port or None)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def count_processes(asked: str) -> int:
    """The ranks of this host: as many as were asked for, or one for each device."""
    return int(asked) if asked != "all" else max(1, len(list_visible()))


if __name__ == "__main__":
    sys.exit(main())
