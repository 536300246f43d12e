"""The doctor's checks of accelerators: driver, devices, and whether torch has kernels for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from engine.config import card_health
from engine.hardware import masks, wheels
from engine.hardware.health import read_log
from engine.hardware.listing import Listing, measure_free
from engine.hardware.nvidia import read_driver
from engine.protocol.messages import Device

DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""CUDA major version -> oldest Linux driver that runs it. https://docs.nvidia.com/deploy/cuda-compatibility/"""


@dataclass(frozen=True)
class Check:
    """`code` is one of `codes.CODES` where a script may want to know which failure it is. `fix` are the words of the
    cockpit verb that does what `mend` says, where that is safe to run: it deletes nothing of the user's, and changes no
    package and no setting of the system."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""
    code: str = ""
    fix: tuple[str, ...] = ()


def check_devices(cuda: str, architectures: Sequence[str]) -> Iterator[Check]:
    """`cuda` and `architectures` are those that torch was built for; empty without CUDA."""
    listing = Listing()
    devices, driver = listing.sample_devices(), read_driver()
    if not devices and not driver:
        yield Check("driver", None, "no NVIDIA driver: everything runs on the CPU")
        return
    if not devices or devices[0].kind == "nvidia":
        yield _check_driver(driver, cuda)
    if listing.note:
        yield Check("device", None, listing.note, "figures that the driver refuses are shown as –")
    visible = masks.find_visible(devices)
    for device in devices:
        yield _check_device(device, device.index in visible, cuda, architectures)
    yield from check_health(devices)


def check_health(devices: Sequence[Device]) -> Iterator[Check]:
    """Which card is ill: by its own figures, and by the Xid errors in the kernel's log."""
    logged = read_log() if any(device.kind == "nvidia" for device in devices) else []
    told: set[int] = set()
    for device in devices:
        number = device.index if device.parent is None else device.parent  # instances have their card's health
        if device.health is None or number in told:
            continue
        told.add(number)
        seen = [each.code for each in logged or () if each.address == device.address]
        health = msgspec.structs.replace(device.health, xids=[*device.health.xids, *seen])
        faults = list(card_health.list_faults(health, device.utilisation))
        heat = f", {device.temperature:.0f} °C" if device.temperature is not None else ""
        line = f"GPU {number}: {card_health.describe_figures(health)}{heat}"
        if not faults:
            unread = "; the kernel's log cannot be read, so earlier Xid errors are not known" * (logged is None)
            yield Check("health", True, f"{line}{unread}")
            continue
        broken = any(fault.broken for fault in faults)
        first = max(faults, key=lambda fault: fault.broken)
        detail = f"{line}; {', '.join(fault.words for fault in faults)}"
        yield Check("health", False if broken else None, detail, first.hint, "device.unreliable" * broken)


def _check_driver(driver: str, cuda: str) -> Check:
    minimum = DRIVERS.get(int(cuda.partition(".")[0])) if cuda else None
    if not driver:
        return Check("driver", None, "the driver does not say its version: its library is not in this container")
    if not minimum:
        return Check(
            "driver",
            False,
            f"{driver}, but this torch was built without CUDA: the GPUs are not used",
            "pip install --force-reinstall torch==2.13.0 (from an index that has the CUDA build)",
        )
    numbers = tuple(int(part) for part in driver.split(".")[:2] if part.isdecimal())
    enough, wanted = numbers >= minimum, f"{minimum[0]}.{minimum[1]}"
    mend = "" if enough else f"install NVIDIA driver {wanted} or newer, or a torch built for an older CUDA"
    return Check("driver", enough, f"{driver}; CUDA {cuda} needs {wanted} or newer", mend)


def _check_device(device: Device, reachable: bool, cuda: str, architectures: Sequence[str]) -> Check:
    free = measure_free(device)
    room = "memory –" if free is None else f"{free / 1e9:.1f} of {(device.memory_total or 0) / 1e9:.1f} GB free"
    line = f"GPU {device.index}: {device.name or '–'}, {room}"
    if not reachable:
        return Check("device", None, f"{line}; it cannot be reached", "nvidia-smi shows whether it is lost")
    capability = wheels.read_capability(device.capability)
    if capability and architectures and not wheels.has_kernels(capability, architectures):
        lack = wheels.describe_lack(device.name, capability, cuda)
        return Check("device", False, f"{line}; {lack}", wheels.suggest(capability, cuda), code="device.no_kernels")
    return Check("device", True, line)
