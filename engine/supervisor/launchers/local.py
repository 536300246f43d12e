"""Ranks on this host: one plain process, or several under torchrun."""

from __future__ import annotations

import socket
import sys


def command(worker: list[str], processes: int, port: int | None) -> list[str]:
    """The command line that starts `worker` (`["engine.workers.train", "--home", …]`) as so many ranks.

    `-P` keeps the working directory off the import path. Several ranks meet at 127.0.0.1 on `port`, a free one when None.
    """
    if processes == 1:
        return [sys.executable, "-P", "-m", *worker]
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "1", "--node-rank", "0"]
    meeting = [
        "--nproc-per-node",
        str(processes),
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port or free_port()),
    ]
    return [*torchrun, *meeting, "-m", *worker]


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
