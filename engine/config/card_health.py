"""Whether a card is ill, and in which words: of what it reports (`Health`), and of the flags in a run's metrics. Pure.

A rank sends the flags of its card as one number, so that the ranks' sum of metrics carries them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.protocol.messages import Device, Health

HEAT, POWER, UNCORRECTED, RESET, REMAP_FAILED, LINK, XID = (1 << at for at in range(7))
THROTTLED = HEAT | POWER
BROKEN = UNCORRECTED | REMAP_FAILED | XID
"""Flags of a card whose results cannot be relied on."""
_WORDS = (
    (THROTTLED, "throttled"),
    (UNCORRECTED, "uncorrected memory errors"),
    (REMAP_FAILED, "broken memory that cannot be replaced"),
    (RESET, "broken memory is replaced at the next reset"),
    (LINK, "a narrow PCIe link"),
    (XID, "Xid errors"),
)
BUSY = 50.0
"""Percent of utilisation from which a link's speed is judged: cards lower it while they are idle."""


class Xid(NamedTuple):
    words: str
    hint: str
    broken: bool


_PROGRAM = "a program's own fault in most cases: look at the end of its log"
XIDS = {
    13: Xid("a kernel failed", _PROGRAM, broken=False),
    31: Xid("a program used memory that is not its own", _PROGRAM, broken=False),
    43: Xid("a program was stopped", _PROGRAM, broken=False),
    45: Xid("a program was ended", _PROGRAM, broken=False),
    48: Xid("an uncorrected memory error", "reset the card; if it comes again, have the card replaced", broken=True),
    61: Xid("the card's controller failed", "reset the card", broken=True),
    62: Xid("the card's controller stopped", "restart the host", broken=True),
    63: Xid("broken memory was marked", "reset the card, so that the memory is replaced", broken=False),
    64: Xid("broken memory could not be marked", "have the card replaced", broken=True),
    74: Xid("an NVLink error", "check the bridge or the switch, and restart the host", broken=True),
    79: Xid("the card fell off the bus", "check its power, heat and seat, and restart the host", broken=True),
    92: Xid("many corrected memory errors", "watch it; have the card replaced if they go on", broken=False),
    94: Xid("a contained memory error ended a program", "reset the card soon", broken=False),
    95: Xid("an uncontained memory error", "reset the card", broken=True),
    119: Xid("the card's own processor does not answer", "restart the host, or install another driver", broken=True),
    120: Xid("the card's own processor failed", "restart the host, or install another driver", broken=True),
}
"""Xid errors, by NVIDIA's list: https://docs.nvidia.com/deploy/xid-errors/."""
_OTHER = Xid("an error of the driver", "look it up in NVIDIA's list of Xid errors", broken=False)


def find_xid(code: int) -> Xid:
    return XIDS.get(code, _OTHER)


class Fault(NamedTuple):
    """What is wrong with a card. `broken` says that its results cannot be relied on."""

    flag: int
    words: str
    hint: str
    broken: bool = False


def list_faults(health: Health | None, utilisation: float | None = None) -> Iterator[Fault]:
    if health is None:
        return
    reasons = set(health.throttled or ()) - {"power_cap"}
    if "heat" in reasons:
        yield Fault(HEAT, "throttled by heat", "check fans, air flow and the cards beside it")
    if "power_brake" in reasons:
        yield Fault(POWER, "throttled by its power supply", "check the host's power supplies and cables")
    if reasons == {"slowdown"}:
        yield Fault(POWER, "throttled by its hardware", "check its heat, and the host's power supplies and cables")
    yield from _list_memory_faults(health)
    width, most = health.link_width, health.link_width_max
    if width and most and width < most:
        yield Fault(LINK, f"PCIe ×{width} of ×{most}", "seat the card again, or use another slot or riser")
    generation, best = health.link_generation, health.link_generation_max
    if generation and best and generation < best and (utilisation or 0.0) >= BUSY:
        yield Fault(LINK, f"PCIe generation {generation} of {best}", "look at the slot's settings in the BIOS")
    for code in dict.fromkeys(health.xids):
        known = find_xid(code)
        yield Fault(XID if known.broken else 0, f"Xid {code}: {known.words}", known.hint, known.broken)


def _list_memory_faults(health: Health) -> Iterator[Fault]:
    if health.ecc_uncorrected:
        words = f"{health.ecc_uncorrected:,} uncorrected memory error{'s' * (health.ecc_uncorrected > 1)}"
        yield Fault(UNCORRECTED, words, "reset the card; if they come again, have it replaced", broken=True)
    if health.remap_failed:
        yield Fault(REMAP_FAILED, "broken memory could not be replaced", "have the card replaced", broken=True)
    if health.reset_pending:
        yield Fault(RESET, "broken memory waits to be replaced", "nvidia-smi --gpu-reset, when nothing uses the card")


def encode(device: Device) -> int:
    """The flags of a card's faults."""
    flags = 0
    for fault in list_faults(device.health, device.utilisation):
        flags |= fault.flag
    return flags


def describe_flags(flags: int, temperature: float | None = None) -> str:
    """For example `throttled, 84 °C`; empty where nothing is known."""
    parts = [words for flag, words in _WORDS if flags & flag]
    return ", ".join([*parts, *([f"{temperature:.0f} °C"] if temperature else [])])


def describe(device: Device) -> str:
    """What is known about a card in a few words, faults first: `throttled, 84 °C`; empty where nothing is."""
    return describe_flags(encode(device), device.temperature)


def describe_figures(health: Health | None) -> str:
    """The figures of a card in one line: clock, errors of its memory, replaced memory, link."""
    if health is None:
        return "reports nothing of its health"
    parts = []
    if health.clock is not None:
        parts.append(f"{health.clock:.0f}" + (f" of {health.clock_max:.0f}" if health.clock_max else "") + " MHz")
    if health.ecc_uncorrected is not None or health.ecc_corrected is not None:
        parts.append(f"{health.ecc_corrected or 0:,} corrected and {health.ecc_uncorrected or 0:,} uncorrected errors")
    replaced = (health.retired_pages or 0) + (health.remapped_rows or 0)
    if replaced:
        parts.append(f"{replaced:,} pieces of memory replaced")
    if health.link_width:
        generation, best = health.link_generation, health.link_generation_max
        link = f"PCIe {generation}.0 " if generation else "PCIe "
        saving = f" (up to {best}.0 when it works)" if generation and best and generation < best else ""
        parts.append(f"{link}×{health.link_width}{saving}")
    return ", ".join(parts) or "reports nothing of its health"
