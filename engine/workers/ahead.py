"""The worker that is kept ahead: it imports the libraries that most workers need, touches no device, and waits for its
job. Then it is that job's worker.

The supervisor starts it (`engine/supervisor/ahead.py`) as it starts every worker, in a session of its own. A job comes
over a socket: its command line, environment and log. The process takes all three, so that nobody can tell it from one
that was started for the job, and runs the module. Where that could make a difference (a variable that the imports have
read has another value, a source file has changed since, a device is open), and where anything fails before the module
runs, it replaces itself by the command line (`execve`): the same process then starts cold. It ends when the supervisor
closes its end of the socket, or is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import runpy
import select
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from engine.models import bitsandbytes_import, libraries
from engine.protocol import handover
from engine.protocol.handover import Handover

MODULES: tuple[str, ...] = (
    *libraries.LOADING,
    "engine.inference.loaded_model",
    "engine.training.session",
    "transformers.models.llama.modeling_llama",
)
PATIENCE = 30.0
"""Seconds between two looks at whether the sources have changed, in which case it ends."""
IMPOSSIBLE = 3
"""Exit status where the kernel does not let a process change its command line."""
CHANGED = 4
"""Exit status when the sources have changed."""

DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/", "/dev/accel", "/dev/davinci", "/dev/dxg")
"""What a driver has open once it has been started: then it has read the masks, which may be others for the job."""

_SET_MAP, _MAP, _MAP_SIZE = 35, 14, 15
"""prctl's PR_SET_MM, PR_SET_MM_MAP and PR_SET_MM_MAP_SIZE; see linux/prctl.h and, for the fields, proc(5)."""
_FIELDS = "start_code end_code start_data end_data start_brk brk start_stack arg_start arg_end env_start env_end auxv"
_kept: list[ctypes.Array[ctypes.c_char]] = []
"""The memory that command line and environment are read from."""


class _Map(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in _FIELDS.split()),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_int32),
    )


class _Recording(os._Environ):  # type: ignore[type-arg]
    """`os.environ` while modules are imported: it notes what they read, set and remove. Who goes through all variables,
    or copies all, looks for a prefix of its own, which is among the fixed ones."""

    read: set[str] = set()
    written: dict[str, str] = {}
    removed: set[str] = set()
    _passed = ""
    _left: list[str] = []
    """What a copy that has begun would read next, the last first: `dict(os.environ)` takes all names, then each
    value."""
    _copied: list[str] = []

    def __getitem__(self, key: str) -> str:
        if self._left and key == self._left[-1]:
            self._copied.append(self._left.pop())
            if not self._left:
                self._copied = []
        elif key != self._passed:
            self.read.update(self._copied, (key,))
            self._left, self._copied = [], []
        return str(super().__getitem__(key))

    def __setitem__(self, key: str, value: str) -> None:
        self.written[key] = value
        self.removed.discard(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self.written.pop(key, None)
        self.removed.add(key)
        super().__delitem__(key)

    def __iter__(self) -> Iterator[str]:
        names = list(super().__iter__())
        self.read.update(self._copied)
        self._left, self._copied = [], []
        for key in names:
            self._passed = key
            yield key
        self._passed, self._left = "", names[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("--channel", type=int, required=True)
    channel = socket.socket(fileno=parser.parse_args().channel)
    channel.set_inheritable(False)
    try:
        before, sources = read_environment(), _stat(map(str, Path(__file__).parents[1].rglob("*.py")))
        status = 0 if can_rename() else IMPOSSIBLE
        job = None
        if not status:
            os.environ.__class__ = _Recording
            job = _import_until_asked(channel)
            _Recording.read.update(os.environ._copied)  # type: ignore[attr-defined]
            os.environ.__class__ = os._Environ
    except Exception:  # noqa: BLE001 - the job may not need what cannot be imported
        _note(traceback.format_exc())
        status = 1
    if status:
        _start_cold(*_refuse_further(channel, status))
    if job is None:
        job = _wait(channel, sources)
    _become(*job, channel, before, sources)


def _wait(channel: socket.socket, sources: dict[str, tuple[int, int]]) -> tuple[Handover, int]:
    """Wait for the job. The files of all loaded modules are added to `sources`."""
    gc.collect()
    gc.freeze()
    own = dict(sources)
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    sources |= _stat({file for file in loaded if file} - sources.keys())
    with contextlib.suppress(OSError):  # the supervisor is gone
        channel.sendall(b"!")
    while not select.select([channel], [], [], PATIENCE)[0]:
        if _stat(own) != own:  # the rest is looked at once, when there is a job: thousands of files, perhaps over NFS
            return _refuse_further(channel, CHANGED)
    return _receive(channel)


def _refuse_further(channel: socket.socket, status: int) -> tuple[Handover, int]:
    """Take no more jobs, and end with this status; a job that has been handed over by then is returned."""
    channel.shutdown(socket.SHUT_RD)  # the supervisor cannot send from now on, and starts the job itself
    job = handover.receive(channel)
    if job is None:
        sys.exit(status)
    return job


def _import_until_asked(channel: socket.socket) -> tuple[Handover, int] | None:
    """Import one module after the other. A job that comes meanwhile imports the rest itself."""
    for name in MODULES:
        libraries.import_all((name,))
        if select.select([channel], [], [], 0)[0]:
            return _receive(channel)
    for prepare in FURTHER:
        prepare()
    return None


def _import_adapters() -> None:
    """Unless torch is built for a device: peft imports bitsandbytes, and that may start its driver."""
    import torch

    if not any((torch.version.cuda, torch.version.hip, getattr(torch.version, "xpu", None))):
        bitsandbytes_import.import_lightly()
        libraries.import_all(("peft",))


def _compile_patterns() -> None:
    """transformers compiles a thousand patterns of names of weights when a model is first loaded: half a second."""
    with contextlib.suppress(ImportError, AttributeError, TypeError):  # of another version
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("llama")


FURTHER: tuple[Callable[[], None], ...] = (_compile_patterns, _import_adapters)
"""What else can be done before anything is known of the job."""


def _receive(channel: socket.socket) -> tuple[Handover, int]:
    job = handover.receive(channel)
    if job is None:
        os._exit(0)
    return job


def _become(
    job: Handover, log: int, channel: socket.socket, before: dict[str, str], sources: dict[str, tuple[int, int]]
) -> None:
    """Be the job's worker, from its first line to its exit status."""
    try:
        if obstacle := _find_obstacle(job, before, sources):
            _note(f"A job is started cold: {obstacle}\n")
        else:
            rename(job.command, job.environment)
    except Exception:  # noqa: BLE001 - the job must not fail for it
        obstacle = traceback.format_exc()
        _note(obstacle)
    if obstacle:
        _start_cold(job, log)
    _redirect(log)
    channel.close()
    own = {name: value for name, value in os.environ.items() if name not in before}  # Python sets LC_CTYPE at its start
    # What the imports have set or removed whatever its value, they would set or remove for the job, too; what they set
    # only where it is missing they have read, so it is the same for the job.
    now = own | job.environment | _Recording.written
    os.environ.clear()
    os.environ.update({name: value for name, value in now.items() if name not in _Recording.removed})
    module, *arguments = job.command[3:]
    sys.orig_argv[:] = job.command
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _find_obstacle(job: Handover, before: dict[str, str], sources: dict[str, tuple[int, int]]) -> str:
    """Why this process may differ from one that was started for the job; empty when it does not."""
    if differs := handover.find_difference(before, job.environment, _Recording.read):
        return f"its {differs} is another one"
    if changed := next((file for file, stat in _stat(sources).items() if stat != sources[file]), ""):
        return f"{changed} has changed"
    if device := find_open_device():
        return f"{device} is open"
    return "" if job.command[1:3] == ["-P", "-m"] else "its command line is of another kind"


def find_open_device(folder: Path = Path("/proc/self/fd")) -> str:
    """A device that this process has open, such as a graphics card; empty when there is none."""
    for descriptor in folder.iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            if (file := str(descriptor.readlink())).startswith(DEVICES):
                return file
    return ""


def _note(text: str) -> None:
    """Write to ahead.log, unless its disk is full."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


def _redirect(log: int) -> None:
    with contextlib.suppress(OSError):  # a full disk
        sys.stdout.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _start_cold(job: Handover, log: int) -> NoReturn:
    _redirect(log)
    os.execve(job.command[0], job.command, job.environment)


def _stat(files: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Time and size of each source file; zeros for one that is gone."""
    found = {}
    for file in files:
        try:
            stat = Path(file).stat()
            found[file] = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            found[file] = (0, 0)
    return found


def read_environment() -> dict[str, str]:
    """The environment that this process was started with."""
    parts = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(part).split("=", 1) for part in parts if b"=" in part)


def can_rename() -> bool:
    """Whether the kernel lets this process say where its command line is (Linux with CONFIG_CHECKPOINT_RESTORE)."""
    size = ctypes.c_uint32()
    done = sys.platform == "linux" and ctypes.CDLL(None).prctl(_SET_MAP, _MAP_SIZE, ctypes.byref(size), 0, 0)
    return done == 0 and size.value == ctypes.sizeof(_Map)


def rename(command: list[str], environment: dict[str, str]) -> None:
    """Let /proc/self say that this process was started with this command line and this environment. Raises OSError."""
    line = b"".join(os.fsencode(part) + b"\0" for part in command)
    variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    memory = ctypes.create_string_buffer(line + variables)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    start = ctypes.addressof(memory)
    places = _Map(
        *(int(fields[number - 3]) for number in (26, 27, 45, 46, 47)),
        libc.sbrk(0),
        int(fields[28 - 3]),
        start,
        start + len(line),
        start + len(line),
        start + len(line) + len(variables),
        0,
        0,
        -1,
    )
    if libc.prctl(_SET_MAP, _MAP, ctypes.byref(places), ctypes.sizeof(places), 0):
        raise OSError(ctypes.get_errno(), "the command line cannot be changed")
    _kept.append(memory)


if __name__ == "__main__":
    main()
