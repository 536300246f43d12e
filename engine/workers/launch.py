"""`python -P -m engine.workers.launch TORCHRUN-ARGUMENTS` is torchrun for the ranks of a host.

torchrun's store listens on every address of the host and asks nobody who they are. Here the store of a job on one host
listens on the loopback address alone, and that of several hosts on the one address that they share
(`engine.workers.node` has bound it). Either is bound before it is named, so that no other program can take it in
between.
"""

from __future__ import annotations

import os
import socket

from torch.distributed import TCPStore, run
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

NAME, SHARED = "loopback", "shared"
"""What these rendezvous are called on the command line."""
STORE = "COCKPIT_STORE"
"""Names the file descriptor of the socket that node 0's store listens on."""
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


class SharedRendezvous(StaticTCPRendezvous):
    """One of the agents of several hosts. Node 0's has the store, on a socket that was handed to it."""

    def __init__(self, address: str, port: int, node: int, nodes: int, run_id: str) -> None:
        super().__init__(address, port, node, nodes, run_id, TIMEOUT)
        if node == 0:
            self._store = TCPStore(
                address,
                port,
                world_size=nodes,
                is_master=True,
                timeout=self.timeout,
                wait_for_workers=False,
                master_listen_fd=int(os.environ.pop(STORE)),
            )

    def get_backend(self) -> str:
        return SHARED


def create_shared(parameters: RendezvousParameters) -> SharedRendezvous:
    """The rendezvous for `--rdzv-backend shared --rdzv-endpoint ADDRESS:PORT --rdzv-conf rank=N`."""
    address, _, port = parameters.endpoint.rpartition(":")
    node = int(parameters.config.get("rank", 0))
    return SharedRendezvous(address, int(port), node, parameters.max_nodes, parameters.run_id)


if __name__ == "__main__":
    rendezvous_handler_registry.register(NAME, create)
    rendezvous_handler_registry.register(SHARED, create_shared)
    run.main()
