"""Engines whose workers are forked from the process of `tests.training.warm`, as the runs of tests/training are.

A worker that an engine starts imports the training libraries for some eight seconds of a core, and a run of the tiny
model has two such workers. A forked one has the command line, session, environment, log and exit status that the engine
gives it. `environment` is for processes that may start an engine: it puts tests/sitecustomize on their path, which
replaces what the supervisor starts workers with. Torchrun's ranks are started cold.
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from tests.training import warm

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Variables with which an engine starts its workers warm. They replace PYTHONPATH."""
    if not warm.AVAILABLE:
        return {"PYTHONPATH": str(ROOT)}
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'sitecustomize'}", "TESTS_WARM": warm.listen()}


# ── in the engine ──────────────────────────────────────────────────────────────────────────────────────────────────


class Forked:
    """A forked worker, with what the supervisor uses of `subprocess.Popen`."""

    def __init__(self, module: str, arguments: list[str], variables: dict[str, str], log: BinaryIO) -> None:
        request = {"module": module, "arguments": arguments, "environment": variables, "session": True}
        self.returncode: int | None = None
        self._status, write = os.pipe()
        os.set_blocking(self._status, False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
            asked.connect(os.environ["TESTS_WARM"])
            fds = array.array("i", [log.fileno(), write])
            asked.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            os.close(write)
            self.pid = int(asked.recv(16))

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = int(os.read(self._status, 16) or -9)
                os.close(self._status)
            except BlockingIOError:
                pass
        return self.returncode


def install() -> None:
    """Have this process, a supervisor, fork its workers."""
    from engine.supervisor import processes

    def popen(command: list[str], **how: Any) -> Any:
        module = command[3] if command[1:3] == ["-P", "-m"] else ""
        if not module.startswith("engine.workers.") or module == "engine.workers.launch":
            return subprocess.Popen(command, **how)
        return Forked(module, command[4:], how["env"], how["stdout"])

    processes.subprocess = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]
    assert sys.platform == "linux"
