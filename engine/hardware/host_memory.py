"""The memory of this host, as far as its processes may use it."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import psutil

_USED = {
    "memory.max": ("memory.current", "inactive_file "),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file "),
}
"""File of a control group's limit -> the file of what it uses, and a line's beginning in `memory.stat`."""


def read_total(root: Path = Path("/")) -> int:
    """Bytes of memory that all processes together can get: the host's, or those of a smaller control group, and
    swap."""
    return min([psutil.virtual_memory().total, *_list_limits(root)]) + psutil.swap_memory().total


def read_available(root: Path = Path("/")) -> int:
    """Bytes of memory that processes can still get without swap: of the host's, or of a smaller control group's."""
    sizes = [(_read(file), _read_used(file)) for file in _list_files(root)]
    free = [limit - used for limit, used in sizes if limit is not None and used is not None]
    return max(0, min([psutil.virtual_memory().available, *free]))


def give_back() -> None:
    """Return memory that this process has freed to the system. A worker's allocator keeps it otherwise (see
    `engine.supervisor.processes.WORKER_DEFAULTS`)."""
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _list_limits(root: Path) -> list[int]:
    """The limits of this process's control groups."""
    return [limit for file in _list_files(root) if (limit := _read(file)) is not None]


def _list_files(root: Path) -> list[Path]:
    """The files with the limits of this process's control groups."""
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
    return files


def _read(file: Path) -> int | None:
    """A number; None where there is no such group, or it has no limit ("max")."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _read_used(limit: Path) -> int | None:
    """What a control group uses, without the cached files that the system drops first."""
    name, cached = _USED[limit.name]
    used = _read(limit.with_name(name))
    try:
        lines = limit.with_name("memory.stat").read_text(encoding="ascii").splitlines()
        dropped = next((int(line.split()[1]) for line in lines if line.startswith(cached)), 0)
    except (OSError, ValueError, IndexError):
        dropped = 0
    return None if used is None else max(0, used - dropped)
