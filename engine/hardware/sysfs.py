"""Devices as Linux shows them: AMD and Intel cards in sysfs, and how many there are where no library answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from engine.protocol.messages import Device

_VENDORS = {"0x1002": "amd", "0x8086": "intel"}
_LEAST = 2_000_000_000
"""Bytes of memory from which a card counts: the graphics unit of a processor is none to train on."""
_TOTALS = ("device/mem_info_vram_total", "lmem_total_bytes", "device/tile0/physical_vram_size_bytes")


def list_cards(root: Path = Path("/")) -> list[Device]:
    """The AMD and Intel cards that have memory of their own, in the order of the bus. What a driver does not show is
    None."""
    cards = sorted(_list_folders(root), key=lambda found: found[0].joinpath("device").resolve().name)
    devices: list[Device] = []
    for folder, kind in cards:
        total = next((size for name in _TOTALS if (size := _read_number(folder / name)) is not None), None)
        if total is None or total < _LEAST:
            continue
        sensors = next(iter(sorted(folder.glob("device/hwmon/hwmon*"))), folder / "none")
        heat, power = _read_number(sensors / "temp1_input"), _read_number(sensors / "power1_average")
        limit, busy = _read_number(sensors / "power1_cap"), _read_number(folder / "device/gpu_busy_percent")
        unique = _read_text(folder / "device/unique_id")
        devices.append(
            Device(
                index=len(devices),
                ordinal=sum(device.kind == kind for device in devices),
                kind=kind,
                name=_read_text(folder / "device/product_name") or f"{kind.upper()} {folder.name}",
                uuid=f"GPU-{unique}" if unique else "",
                memory_used=_read_number(folder / "device/mem_info_vram_used"),
                memory_total=total,
                utilisation=float(busy) if busy is not None else None,
                temperature=heat / 1000 if heat is not None else None,
                power=power / 1e6 if power is not None else None,
                power_limit=limit / 1e6 if limit is not None else None,
                processes=None,
            )
        )
    return devices


def count_nodes(root: Path = Path("/")) -> dict[str, int]:
    """Cards that have a device file, by kind, where no library describes them."""
    patterns = {"nvidia": r"nvidia\d+", "ascend": r"davinci\d+"}
    try:
        names = [path.name for path in (root / "dev").iterdir()]
    except OSError:
        return {}
    counts = {kind: sum(bool(re.fullmatch(pattern, name)) for name in names) for kind, pattern in patterns.items()}
    return {kind: count for kind, count in counts.items() if count}


def _list_folders(root: Path) -> Iterator[tuple[Path, str]]:
    for folder in (root / "sys/class/drm").glob("card[0-9]*"):
        kind = _VENDORS.get(_read_text(folder / "device/vendor"))
        if kind and folder.name[4:].isdigit():
            yield folder, kind


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    try:
        return int(_read_text(path), 0)
    except ValueError:
        return None
