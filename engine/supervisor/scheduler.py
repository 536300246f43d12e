"""Decides on which devices a queued run starts. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a run needs. `devices` None: any; `processes` None: one for each device of the host."""

    run: str
    processes: int | None
    devices: tuple[int, ...] | None


def assign(
    demand: Demand,
    visible: Sequence[int],
    busy: Collection[int],
    cpu_busy: bool,
    instances: Collection[int] = (),
) -> list[int] | None:
    """Device indices for a run, or None when it must wait. Raises ValueError when it can never start here.

    `visible` are the devices that it may use, in the order of preference. A process sees one of the `instances` that a
    card is divided into, so several processes cannot share a run on them. A host without devices runs one job at a
    time, and the list is empty.
    """
    if not visible:
        if demand.devices:
            raise ValueError(f"asks for devices {list(demand.devices)}, and there are none")
        return None if cpu_busy else []
    requested = demand.devices
    if requested is None:
        together = [index for index in visible if index not in instances]
        usable = list(visible) if demand.processes == 1 or not together else together
        number = demand.processes or (len(together) or 1)
        if number > len(usable) or (number > 1 and not together):
            raise ValueError(f"asks for {number} processes, one per device, and there are {len(together)} devices")
        free = [index for index in usable if index not in busy]
        return free[:number] if len(free) >= number else None
    missing = [index for index in requested if index not in visible]
    if missing:
        raise ValueError(f"asks for devices {missing}, which are not among them")
    if len(requested) > 1 and any(index in instances for index in requested):
        raise ValueError(f"asks for instances of a divided card in {list(requested)}: a process sees only one")
    return None if any(index in busy for index in requested) else list(requested)
