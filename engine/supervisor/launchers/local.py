"""Ranks on this host: one plain process, or several under torchrun."""

from __future__ import annotations

import socket
import sys


def build_command(worker: list[str], processes: int, port: int | None) -> list[str]:
    """Build the command line that starts `worker` (`["engine.workers.train", "--home", …]`) as `processes` ranks.

    `-P` keeps the working directory off the import path. Several ranks rendezvous at 127.0.0.1 on `port`; None takes a
    free one.
    """
    if processes == 1:
        return [sys.executable, "-P", "-m", *worker]
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "1", "--node-rank", "0"]
    rendezvous = [
        "--nproc-per-node",
        str(processes),
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port or find_free_port()),
    ]
    return [*torchrun, *rendezvous, "-m", *worker]


def find_free_port() -> int:
    """A TCP port of the loopback interface that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
