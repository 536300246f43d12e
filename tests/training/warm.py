"""Processes forked from one that has imported what they need already.

Importing the training libraries takes a worker some ten seconds of a core, and a run of the tiny model takes little
more than one; supervisors, verbs and scripted workers take about a second each, and most of that is importing, too. A
forked process has its own environment, output, limits, signals and exit status, and it runs the same `main`. What
forking leaves out, a new interpreter and torchrun, is tested where processes are started cold
(`Supervised.start(cold=True)`, `Engine(cold=True)`), by the tests that run a verb in a terminal, and by those that say
what a process loads.

`python -m tests.training.warm FD ADDRESS FAMILY` is a process that forks: TRAINING has the training libraries, LIGHT
has what the command line and the supervisor load. It ends when the test process closes the other end of that socket.
Engines and verbs that tests start ask for their processes at the address.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from engine.hardware.nvidia import Nvidia
from engine.supervisor.launchers.local import build_command

ROOT = Path(__file__).parents[2]
LIGHT, TRAINING = "light", "training"
LIGHT_AVAILABLE = hasattr(os, "pidfd_open")
"""Whether forking works: on Linux. Elsewhere every process is started cold."""
AVAILABLE = LIGHT_AVAILABLE and not Nvidia().count
"""Whether it works with the training libraries: without a card, since bitsandbytes starts CUDA as it is imported, and
CUDA does not survive a fork."""
PRELOADED_LIGHT = (
    "engine.supervisor.server",
    "engine.supervisor.operations",
    "engine.config.profile",
    "engine.config.form",
    "engine.protocol.client",
    "engine.protocol.worker_link",
    "cockpit.command_line",
    "rich.table",
    "rich.progress",
    "rich.markdown",
    "rich.live",
)
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


def wait_for(processes: Iterable[Forked], timeout: float | None = None) -> None:
    """Wait until one of them has ended, for at most `timeout` seconds."""
    with selectors.DefaultSelector() as selector:  # `select` takes no descriptor from 1024 on
        for each in processes:
            selector.register(each, selectors.EVENT_READ)
        selector.select(timeout)


class Forked:
    """A forked process, with the methods of `subprocess.Popen` that the tests and the supervisor use."""

    def __init__(self, pid: int, status: int, arguments: list[str]) -> None:
        self.pid, self._status, self.args = pid, status, arguments
        self.returncode: int | None = None

    def fileno(self) -> int:
        """Becomes readable when the process has ended."""
        return self._status

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError):
                self.returncode = int(os.read(self._status, 16) or -signal.SIGKILL)
                os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            wait_for([self], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Workers:
    """The ranks of one attempt, with those methods of `subprocess.Popen` that the tests use. `pid` is that of rank
    0."""

    def __init__(self, module: str, *arguments: str, processes: int, environment: dict[str, str], log: Path) -> None:
        meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
        self.returncode: int | None = None
        self._running: list[Forked] = []
        with open(os.devnull, "rb") as nothing, open(log, "ab") as output:
            for rank in range(processes):
                place = meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
                request = {"module": module, "arguments": arguments, "environment": environment | place}
                self._running.append(fork(_parent(TRAINING), request, nothing, output, output))
        self.pid = self._running[0].pid

    def poll(self) -> int | None:
        """The exit status when all ranks have ended: 0, or that of the first that failed, negative for a signal.

        A rank that fails takes the others with it, as under torchrun.
        """
        for rank in list(self._running):
            if rank.poll() is not None:
                self._running.remove(rank)
                self.returncode = self.returncode or rank.returncode
                if self.returncode:
                    self.kill()
        return None if self._running else self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            wait_for(self._running)
        return code

    def send_signal(self, number: int) -> None:
        for rank in self._running:
            rank.send_signal(number)

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


def listen(family: str = TRAINING) -> str:
    """The address at which this process's forking process takes requests from engines (see `tests.warm_engine`)."""
    _parent(family)
    return _address(family)


@functools.cache
def _address(family: str) -> str:
    return str(Path(tempfile.mkdtemp(prefix=f"warm-{family}-")) / "socket")


@functools.cache
def _parent(family: str) -> socket.socket:
    """The socket of this process's forking process, which is started on the first call."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    fd = str(theirs.fileno())
    subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, fd, _address(family), family, " " * LONGEST_LINE],
        pass_fds=[theirs.fileno()],
        cwd="/",
        env=environment,
    )
    theirs.close()
    assert ours.recv(16) == b"ready", "the process that forks workers could not be started"
    return ours


def fork(asked: socket.socket, request: dict[str, Any], *files: IO[Any]) -> Forked:
    """Start a process with these files as its input, output and errors."""
    status, write = os.pipe()
    os.set_blocking(status, False)
    try:
        socket.send_fds(asked, [json.dumps(request).encode()], [*(file.fileno() for file in files), write])
    finally:
        os.close(write)
    pid = asked.recv(16)
    assert pid, "the process that forks workers is gone"
    return Forked(int(pid), status, request["arguments"])


def fork_at(address: str, request: dict[str, Any], *files: IO[Any]) -> Forked:
    """As `fork`, from the process that listens at this address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.connect(address)
        return fork(asked, request, *files)


# ── the process that forks ─────────────────────────────────────────────────────────────────────────────────────────


def main(control: socket.socket, address: str, family: str) -> None:
    for name in ("tests.warm_engine", *(PRELOADED_LIGHT if family == LIGHT else PRELOADED)):
        importlib.import_module(name)
    if family == LIGHT:  # what a profile is checked with, and what the form asks
        from engine.config.profile import find, load

        load(find("triples-qlora"))
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
    request, passed, *_ = socket.recv_fds(asked, LARGEST, 4)
    if not request:
        return False
    *files, status = passed
    pid = os.fork()
    if pid == 0:
        for other in (asked, *others):
            other.close()
        _work(json.loads(request), files)
    for file in files:
        os.close(file)
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


def _work(request: dict[str, Any], files: list[int]) -> None:
    """Be the process that is asked for: never returns."""
    status = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        if request.get("session"):
            os.setsid()
        if line := request.get("line"):
            _rename(*line)
        os.chdir(request.get("folder", "/"))
        os.umask(request.get("umask", 0o022))
        os.environ.clear()
        os.environ.update(request["environment"])
        if os.environ.get("PYTHONFAULTHANDLER"):
            faulthandler.enable()
        sys.path += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
        sys.argv = [request["module"], *request["arguments"]]
        importlib.import_module("tests.warm_engine").install(request["module"])
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - this process must not go on as another one that forks
        traceback.print_exc()
    finally:
        if "torch" not in sys.modules:
            threading._shutdown()  # type: ignore[attr-defined]  # as at an interpreter's end
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:4])
