"""The memory of this host, as far as its processes may use it."""

from __future__ import annotations

from pathlib import Path

import psutil


def read_total(root: Path = Path("/")) -> int:
    """Bytes of memory that all processes together can get: the host's, or those of a smaller control group, and
    swap."""
    return min([psutil.virtual_memory().total, *_list_limits(root)]) + psutil.swap_memory().total


def _list_limits(root: Path) -> list[int]:
    """The limits of this process's control groups."""
    groups = root / "sys/fs/cgroup"
    files = [groups / "memory.max", groups / "memory/memory.limit_in_bytes"]
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    if own and ".." not in own:
        place = groups / own
        files += [each / "memory.max" for each in (place, *place.parents) if each != groups and groups in each.parents]
    found = []
    for file in files:
        try:
            found.append(int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is no such group, or it has no limit: "max"
            continue
    return found
