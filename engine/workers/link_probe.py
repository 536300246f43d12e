"""One host's rank of `cockpit doctor --hosts`: measures all-reduce between each two hosts, and among all."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from engine.protocol.home import write_private
from engine.training.ranks import read_place

SECONDS = 60
LARGE = 16 << 20
"""Bytes that the bandwidth is measured with."""
ROUNDS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments, _ = parser.parse_known_args()
    import torch
    import torch.distributed as distributed

    rank, local, world = read_place()
    if world == 1:
        write_private(arguments.out, json.dumps({"backend": "none", "links": []}).encode())
        return 0
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=SECONDS))
    device = "cuda" if cuda else "cpu"
    found: list[dict[str, Any]] = []
    members = [*itertools.combinations(range(world), 2), *([tuple(range(world))] if world > 2 else [])]
    for ranks in members:
        group = distributed.new_group(list(ranks))
        if rank in ranks:
            latency = _measure(torch.ones(1, device=device), group, ROUNDS)
            seconds = _measure(torch.ones(LARGE // 4, device=device), group, 3)
            share = 2 * (len(ranks) - 1) / len(ranks)
            found.append({"ranks": ranks, "latency": latency, "bandwidth": share * LARGE / seconds})
        distributed.barrier()
    gathered: list[Any] = [None] * world
    distributed.all_gather_object(gathered, found)
    if rank == 0:
        known = {tuple(each["ranks"]): each for each in itertools.chain(*gathered)}
        result = {"backend": "nccl" if cuda else "gloo", "links": list(known.values())}
        write_private(arguments.out, json.dumps(result).encode())
    distributed.destroy_process_group()
    return 0


def _measure(tensor: Any, group: Any, rounds: int) -> float:
    """Seconds of one all-reduce of this tensor."""
    import torch.distributed as distributed

    distributed.all_reduce(tensor, group=group)
    begun = time.perf_counter()
    for _ in range(rounds):
        distributed.all_reduce(tensor, group=group)
        tensor.fill_(float(tensor[:1].item() > 0))  # also waits for the device
    return (time.perf_counter() - begun) / rounds


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
