"""Decides which queued run starts next, and on which devices. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a run needs. `devices` None: any; `processes` None: one for each device of the host."""

    run: str
    processes: int | None
    devices: tuple[int, ...] | None


def assign(demand: Demand, count: int, busy: Collection[int], cpu_busy: bool) -> list[int] | None:
    """Device indices for a run, or None when it must wait. Raises ValueError when it can never start here.

    A host without devices runs one job at a time, and the list is empty.
    """
    if count == 0:
        if demand.devices:
            raise ValueError(f"asks for devices {list(demand.devices)}, and this host has none")
        return None if cpu_busy else []
    requested = demand.devices
    if requested is None:
        number = demand.processes or count
        if number > count:
            raise ValueError(f"asks for {number} processes, one per device, and this host has {count} devices")
        free = [index for index in range(count) if index not in busy]
        return free[:number] if len(free) >= number else None
    missing = [index for index in requested if index >= count]
    if missing:
        raise ValueError(f"asks for devices {missing}, and this host has 0…{count - 1}")
    return None if any(index in busy for index in requested) else list(requested)


def pick_first(
    queue: Sequence[Demand], count: int, busy: Collection[int], cpu_busy: bool
) -> tuple[str, list[int]] | None:
    """The first run of the queue and its devices, or None while it must wait. No run overtakes another: the user set
    the order."""
    if not queue:
        return None
    devices = assign(queue[0], count, busy, cpu_busy)
    return None if devices is None else (queue[0].run, devices)
