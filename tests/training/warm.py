"""Workers forked from a process that has imported the training libraries already.

Importing them takes a worker some ten seconds of a core, and a run of the tiny model takes little more than one. A
forked worker is a process of its own, with its own environment, log, limits, signals and exit status, and it runs the
same `main`. What forking leaves out, a new interpreter and torchrun, is tested where runs are started cold
(`Supervised.start(cold=True)`) and by the tests that start an engine.

`python -m tests.training.warm FD ADDRESS` is the process that forks. It ends when the test process closes the other end
of that socket. Engines that tests start ask for their workers at the address.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from engine.hardware.nvidia import Nvidia
from engine.supervisor.launchers.local import build_command

ROOT = Path(__file__).parents[2]
AVAILABLE = hasattr(os, "pidfd_open") and not Nvidia().count
"""Whether forking works: on Linux, and without a card, since bitsandbytes starts CUDA as it is imported, and CUDA does
not survive a fork. Elsewhere every run is started cold."""
PRELOADED = (
    "engine.training.session",
    "transformers.models.llama.modeling_llama",
    "engine.training.assemble",
    "engine.training.supervised",
    "engine.training.checks",
    "engine.training.dropout",
    "engine.training.adapters.lora",
    "engine.training.adapters.none",
    "engine.training.methods.sft",
    "engine.training.online.checks",
    "engine.training.parallel.zero1",
    "engine.export.checks",
    "engine.models.quantization",
    "engine.prep.checks",
    "transformers.optimization",
    "transformers.trainer_pt_utils",
    "accelerate",
    "peft",
    "bitsandbytes",
    "datasets",
)
LARGEST = 1 << 18
"""Bytes of a request."""
LONGEST_LINE = 4000
"""Bytes of a worker's command line, which is written over that of the process that forks."""


def find_free_port() -> int:
    """A TCP port of the loopback interface that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Workers:
    """The ranks of one attempt, with those methods of `subprocess.Popen` that the tests use. `pid` is that of rank
    0."""

    def __init__(self, module: str, *arguments: str, processes: int, environment: dict[str, str], log: Path) -> None:
        meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
        self.returncode: int | None = None
        self._running: dict[int, int] = {}
        for rank in range(processes):
            place = meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            pid, status = _fork({"module": module, "arguments": arguments, "environment": environment | place}, log)
            self._running[pid] = status
        self.pid = next(iter(self._running))

    def poll(self) -> int | None:
        """The exit status when all ranks have ended: 0, or that of the first that failed, negative for a signal.

        A rank that fails takes the others with it, as under torchrun.
        """
        for pid in list(self._running):
            with contextlib.suppress(BlockingIOError):
                self._end(pid)
        return None if self._running else self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            select.select(self._running.values(), [], [])
        return code

    def _end(self, pid: int) -> None:
        """Read this rank's exit status. Raises BlockingIOError while it runs."""
        answer = os.read(self._running[pid], 16)
        os.close(self._running.pop(pid))
        assert answer, "the process that forks workers is gone"
        self.returncode = self.returncode or int(answer)
        if self.returncode:
            self.kill()

    def send_signal(self, number: int) -> None:
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    worker: list[str], processes: int, environment: dict[str, str], log: Path, cold: bool = False
) -> Workers | subprocess.Popen[bytes]:
    """Start `worker` (a module and its arguments) as so many ranks, their output appended to `log`. `cold`: by a
    launcher's command line."""
    if AVAILABLE and not cold:
        return Workers(*worker, processes=processes, environment=environment, log=log)
    with open(log, "ab") as output:
        line = build_command(worker, processes, None)
        return subprocess.Popen(line, stdout=output, stderr=output, cwd="/", env=environment)


def listen() -> str:
    """The address at which this process's forking process takes requests from engines (see `tests.warm_engine`)."""
    _parent()
    return _address()


@functools.cache
def _address() -> str:
    return str(Path(tempfile.mkdtemp(prefix="warm-")) / "socket")


@functools.cache
def _parent() -> socket.socket:
    """The socket of this process's forking process, which is started on the first call."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), _address(), " " * LONGEST_LINE],
        pass_fds=[theirs.fileno()],
        cwd="/",
        env=environment,
    )
    theirs.close()
    assert ours.recv(16) == b"ready", "the process that forks workers could not be started"
    return ours


def _fork(request: dict[str, Any], log: Path) -> tuple[int, int]:
    """Start a worker; returns its pid, and a pipe that will hold its exit status."""
    status, write = os.pipe()
    os.set_blocking(status, False)
    with open(log, "ab") as output:
        socket.send_fds(_parent(), [json.dumps(request).encode()], [output.fileno(), write])
    os.close(write)
    pid = _parent().recv(16)
    assert pid, "the process that forks workers is gone"
    return int(pid), status


# ── the process that forks ─────────────────────────────────────────────────────────────────────────────────────────


def main(control: socket.socket, address: str) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a worker collects garbage several times: without walking half a million objects of the libraries
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as engines, selectors.DefaultSelector() as selector:
        engines.bind(address)
        engines.listen(64)
        control.send(b"ready")
        for asks in (control, engines):
            selector.register(asks, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data:
                    _report(selector, key)
                elif key.fileobj is engines:
                    asked, _ = engines.accept()
                    with asked:
                        _answer(selector, asked, (control, engines))
                elif not _answer(selector, control, (engines,)):
                    for running in list(selector.get_map().values()):
                        if running.data:
                            os.kill(running.data[0], signal.SIGKILL)
                    shutil.rmtree(Path(address).parent, ignore_errors=True)
                    return


def _answer(selector: selectors.BaseSelector, asked: socket.socket, others: tuple[socket.socket, ...]) -> bool:
    """Fork the worker that is asked for; False when the other end is closed."""
    request, passed, *_ = socket.recv_fds(asked, LARGEST, 2)
    if not request:
        return False
    log, status = passed
    pid = os.fork()
    if pid == 0:
        for other in (asked, *others):
            other.close()
        _work(json.loads(request), log)
    os.close(log)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
    asked.send(str(pid).encode())
    return True


def _report(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Tell who asked for this worker how it has ended."""
    pid, status = key.data
    selector.unregister(key.fileobj)
    os.close(key.fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # who asked is gone
        os.write(status, str(code).encode())
    os.close(status)


def _rename(*line: str) -> None:
    """Give this process a command line, by which the engine finds the processes of a job."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    content = b"\0".join(part.encode() for part in line)[: end - start - 1]
    ctypes.memmove(start, content.ljust(end - start, b"\0"), end - start)


def _work(request: dict[str, Any], log: int) -> None:
    """Be the worker: never returns."""
    status = 1
    try:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if request.get("session"):
            os.setsid()
            _rename(sys.executable, "-P", "-m", request["module"], *request["arguments"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - this process must not go on as another one that forks
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
