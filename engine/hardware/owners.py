"""Who a process on a device is. The driver names processes by the host's pids, which in a container may be those of
other processes here: then nobody is named rather than somebody else."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import psutil

from engine.protocol.messages import DeviceProcess

_FIRST_NAMESPACE = 0xEFFFFFFC
"""The inode of the host's own pid namespace, a constant of Linux."""
_NODES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render", "/dev/davinci")


def describe(pid: int, memory: int | None) -> DeviceProcess:
    """The process of a device, with its owner where the pid certainly is this process's."""
    found = DeviceProcess(pid=pid, memory=memory)
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            since, user, name = process.create_time(), process.username(), process.name()
            line = process.cmdline() if process.uids().real == os.getuid() else []
        if not _is_certain(pid) or process.create_time() != since:
            return found
    except (psutil.Error, OSError):  # of another container, which the kernel hides, or it has ended
        return found
    found.user, found.name, found.since, found.job = user, name, since, _find_job(line)
    return found


def _is_certain(pid: int) -> bool:
    """Whether the driver's pid is that of the local process with this number."""
    if is_first_namespace():
        return True
    return _holds_device(pid)


def is_first_namespace() -> bool:
    """Whether this process counts pids as the driver does."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_NAMESPACE
    except OSError:
        return False


def _holds_device(pid: int) -> bool:
    """Whether a local process has a device open. Those of others are not readable, and count as not."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for link in links:
        try:
            if str(link.readlink()).startswith(_NODES):
                return True
        except OSError:
            continue
    return False


def _find_job(line: list[str]) -> str:
    """The run or service in a worker's command line."""
    return (
        "" if "--home" not in line else next((job for option, job in itertools.pairwise(line) if option == "--job"), "")
    )
