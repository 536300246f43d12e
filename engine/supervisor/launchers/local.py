"""Ranks on this host: one plain process, or several under torchrun."""

from __future__ import annotations

import sys

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Ranks of one host talk over its loopback interface, which no other host reaches."""


def build_command(worker: list[str], processes: int, port: int | None) -> list[str]:
    """Build the command line that starts `worker` (`["engine.workers.train", "--home", …]`) as `processes` ranks.

    `-P` keeps the working directory off the import path. Several ranks rendezvous at 127.0.0.1 on `port`; None takes a
    free one.
    """
    if processes == 1:
        return [sys.executable, "-P", "-m", *worker]
    torchrun = [sys.executable, "-P", "-m", "engine.workers.launch", "--nnodes", "1"]
    rendezvous = ["--rdzv-backend", "loopback", "--rdzv-endpoint", f"127.0.0.1:{port or 0}"]
    return [*torchrun, *rendezvous, "--nproc-per-node", str(processes), "-m", *worker]


def build_rank_environment(environment: dict[str, str], processes: int) -> dict[str, str]:
    """What the ranks of a job get besides its environment: the interface they talk over, where none is named."""
    return LOOPBACK | environment if processes > 1 and sys.platform == "linux" else environment
