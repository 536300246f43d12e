"""Which queued run starts next, and on which devices. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a run asks for: `devices` None means any; `processes` None means one for each device there is."""

    run: str
    processes: int | None
    devices: tuple[int, ...] | None


def assign(demand: Demand, count: int, busy: Collection[int], cpu_busy: bool) -> list[int] | None:
    """Device indices for a run, or None when it must wait. Raises ValueError when it can never start here.

    Without devices the host itself is the one device: a run at a time, and the answer is an empty list.
    """
    if count == 0:
        if demand.devices:
            raise ValueError(f"asks for devices {list(demand.devices)}, and this host has none")
        return None if cpu_busy else []
    wanted = demand.devices
    if wanted is None:
        number = demand.processes or count
        if number > count:
            raise ValueError(f"asks for {number} processes, one a device, and this host has {count} devices")
        free = [index for index in range(count) if index not in busy]
        return free[:number] if len(free) >= number else None
    missing = [index for index in wanted if index >= count]
    if missing:
        raise ValueError(f"asks for devices {missing}, and this host has 0…{count - 1}")
    return None if any(index in busy for index in wanted) else list(wanted)


def first(queue: Sequence[Demand], count: int, busy: Collection[int], cpu_busy: bool) -> tuple[str, list[int]] | None:
    """The head of the queue with its devices, if it can start now. Nobody overtakes: the order is the user's."""
    if not queue:
        return None
    devices = assign(queue[0], count, busy, cpu_busy)
    return None if devices is None else (queue[0].run, devices)
