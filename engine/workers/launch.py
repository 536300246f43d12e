"""`python -P -m engine.workers.launch TORCHRUN-ARGUMENTS` is torchrun for the ranks of one host.

torchrun's store listens on every address of the host and asks nobody who they are. Here it listens on the loopback
address alone, at a port that is bound before it is named, so that no other program can take it in between.
"""

from __future__ import annotations

import socket

from torch.distributed import TCPStore, run
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

NAME = "loopback"
"""What this rendezvous is called on the command line."""
LOOPBACK = "127.0.0.1"
TIMEOUT = 900
"""Seconds that the store waits for a rank."""


class LoopbackRendezvous(StaticTCPRendezvous):
    """One agent with a store on the loopback address. Port 0 takes a free one."""

    def __init__(self, port: int, run_id: str) -> None:
        listener = socket.create_server((LOOPBACK, port), backlog=128)
        super().__init__(LOOPBACK, listener.getsockname()[1], 0, 1, run_id, TIMEOUT)
        self._store = TCPStore(
            LOOPBACK,
            self.master_port,
            world_size=1,
            is_master=True,
            timeout=self.timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def get_backend(self) -> str:
        return NAME


def create(parameters: RendezvousParameters) -> LoopbackRendezvous:
    """The rendezvous for torchrun's `--rdzv-backend loopback --rdzv-endpoint 127.0.0.1:PORT`."""
    return LoopbackRendezvous(int(parameters.endpoint.rpartition(":")[2]), parameters.run_id)


if __name__ == "__main__":
    rendezvous_handler_registry.register(NAME, create)
    run.main()
