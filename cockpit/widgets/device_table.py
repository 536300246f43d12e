"""Many devices, a line each: how busy, how full, how hot, and whose. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.formatting import format_size
from engine.config import card_health
from engine.protocol.messages import Device, Host

MANY = 8
"""Devices from which on each has a line instead of a panel."""
COLUMN = 38
"""Cells that a device's line needs at least."""
HOT, WARM = 90.0, 80.0
"""Degrees from which a temperature is marked."""
STRAGGLING = 0.6
"""A device that is less busy than this share of the median is marked."""
BAR = 6
"""Cells of a bar."""
FORECAST = "┃"
"""The mark of the forecast in a bar of memory."""
EIGHTHS = " ▏▎▍▌▋▊▉█"


def table_height(devices: int, width: int, low: bool) -> int:
    """The lines that `devices` and the host take."""
    return -(-devices // _columns(devices, width, low)) + 1


def device_table(
    devices: Sequence[Device],
    host: Host,
    own: Collection[int],
    width: int,
    *,
    low: bool = False,
    forecast: float = 0.0,
) -> Content:
    """The devices from top to bottom, in one or two columns, and a last line about the host. `own` are the devices of
    the run on the screen; of others it says who uses them. `forecast` are the bytes that the run was forecast to take
    of each: a mark in the bars of memory."""
    busy = [device.utilisation for device in devices if device.utilisation is not None and device.index in own]
    usual = median(busy) if busy else 0.0
    columns = _columns(len(devices), width, low)
    rows, room = -(-len(devices) // columns), width // columns
    lines = []
    for at in range(rows):
        parts = [_device(device, usual, device.index in own, room, forecast) for device in devices[at::rows]]
        lines.append(Content("").join(part.pad_right(max(0, room - part.cell_length)) for part in parts))
    return Content("\n").join([*lines, _host(host)])


def _columns(devices: int, width: int, low: bool) -> int:
    return 2 if (low or devices > MANY) and width >= 2 * COLUMN else 1


def _device(device: Device, usual: float, own: bool, room: int, forecast: float) -> Content:
    share = (device.utilisation or 0.0) / 100
    straggles = own and device.utilisation is not None and device.utilisation < STRAGGLING * usual
    busy = " –" if device.utilisation is None else f"{device.utilisation:3.0f}%"
    used, total = device.memory_used, device.memory_total
    full = used / total if used is not None and total else 0.0
    memory = "–" if used is None or not total else f"{format_size(used).removesuffix('G')}/{format_size(total)}"
    heat = device.temperature
    hot = heat is not None and heat >= HOT
    colour = "$error" if hot else "$warning" if heat is not None and heat >= WARM else "$text"
    line = Content.assemble(
        (f"{device.index:>2} ", "$text-muted"),
        (_bar(share), "$warning" if straggles else "$success"),
        (f"{busy}{'▼' if straggles else ' '} ", "bold $warning" if straggles else "bold $text"),
        *memory_bar(full, forecast / total if own and total else 0.0),
        (f" {memory} ", "$text"),
        ("–" if heat is None else f"{heat:.0f}°{'!' if hot else ''}", f"bold {colour}" if hot else colour),
    )
    if faults := card_health.describe_flags(card_health.encode(device)):
        line = Content.assemble(line, (f" {faults}", "bold $error"))
        line = line.truncate(room - 1, ellipsis=True) if line.cell_length >= room else line
    further = [] if device.power is None else [f" {device.power:.0f}W"]
    further += [] if own else [f" {owner}" for owner in _owners(device)]
    for text in further:
        if line.cell_length + len(text) < room:
            line = Content.assemble(line, (text, "$text-muted"))
    return line


def memory_bar(full: float, forecast: float = 0.0, cells: int = BAR) -> list[tuple[str, str]]:
    """A bar of memory, with a mark in the cell up to which it was forecast to be full."""
    bar, style = _bar(full, cells), "$error" if full > 0.95 else "$primary"
    if forecast <= 0:
        return [(bar, style)]
    at = min(cells - 1, max(0, math.ceil(forecast * cells) - 1))
    return [(bar[:at], style), (FORECAST, "bold $warning"), (bar[at + 1 :], style)]


def _owners(device: Device) -> list[str]:
    return list(dict.fromkeys(process.user or "unknown" for process in device.processes or ()))


def _bar(share: float, cells: int = BAR) -> str:
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(cells, "·")


def _host(host: Host) -> Content:
    load = f"{host.load[0]:.1f}/{host.cpu_count}" if host.load else tr("{cpu_count} cores", cpu_count=host.cpu_count)
    memory = f"{format_size(host.memory_used)}/{format_size(host.memory_total)}"
    text = tr(
        "CPU {cpu_percent:.0f}% load {load}   memory {memory}   disk {disk_free} free",
        cpu_percent=host.cpu_percent,
        load=load,
        memory=memory,
        disk_free=format_size(host.disk_free),
    )
    return Content.styled(f"   {text}", "$text-muted")
