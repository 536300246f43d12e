"""Keeps one worker ahead of the next job: a process that has imported the libraries and waits (`engine.workers.ahead`).

Most of the time from a key to the first token goes into importing torch and transformers. The worker that is kept ahead
is a child like every other one, in a session of its own; when it takes a job it is that job's worker, with its command
line, environment and log, and its exit status and adoption are those of any worker. The next one is started when the
host has nothing else to do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from engine.hardware import host_memory
from engine.protocol import handover, process, stages, states
from engine.protocol.environment import build_job_environment, is_secret
from engine.protocol.handover import Handover
from engine.protocol.home import Home, make_private, open_private
from engine.protocol.messages import ProblemError, Telemetry, WarmWorker
from engine.protocol.text import first_line
from engine.supervisor import processes
from engine.supervisor.devices import Devices
from engine.supervisor.launchers.local import build_command
from engine.supervisor.processes import Leader
from engine.supervisor.run_record import Record

VARIABLE = "COCKPIT_WARM"
"""Environment variable of the engine: 0 keeps none ahead, `always` starts one on a busy host, too."""
SETTING = ("engine", "warm_worker")
"""The same in `settings.yaml`: false keeps none ahead."""
WORKERS = ("chat", "evaluate", "export", "fit", "generate", "post_training", "serve", "train")
"""Modules of `engine.workers` that need the libraries that it imports."""
IDLE = 600.0
"""Seconds since a client last asked for something after which it is given back."""
PAUSE = 5.0
"""Seconds between the end of one and the start of the next."""
QUIET = 50.0
"""Per cent of the cores' time: a busier host starts none."""
FEW_CORES = 4
"""Where there are no more, none is started while a run trains."""
ROOM, TIGHT = 2 << 30, 1 << 30
"""Bytes of available memory: below the first none is started, below the second it is given back."""
PRESSED = 10.0
"""Per cent of the last ten seconds that some process waited for memory (PSI): it is given back."""
DEATH = 0.5
"""Seconds that the engine waits for its end, at most."""
MOST_FAILURES = 3
"""Ends by itself since a job has last taken one, after which no other one is started."""
STATUSES = {3: "this system does not let a process change its command line", 4: "the sources have changed"}
"""Why one has ended, see `engine.workers.ahead`."""


class Ahead:
    """`look` is called once a second, `start` starts every worker of this host."""

    def __init__(self, home: Home, workers: str, devices: Devices) -> None:
        self._home, self._workers, self._devices = home, workers, devices
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._environment: dict[str, str] = {}
        """That of the child."""
        self._wanted: dict[str, str] | None = None
        """That of the latest job, which the next one probably has."""
        self._not_before = 0.0
        self._until = time.monotonic() + IDLE  # a client has started the engine
        self._ready = False
        self._failures = 0
        self._oom_score = ""
        self._reason = "none has been started yet"

    # ── what others call ──────────────────────────────────────────────────────────────────────────────────────────

    def want(self) -> None:
        """A client is here: it may soon need a worker."""
        self._until = time.monotonic() + IDLE

    def start(self, command: list[str], log: Path, environment: dict[str, str]) -> Leader:
        """Start a worker, as `processes.start`; the one that is kept ahead, if it is such a worker. Raises OSError."""
        module = command[3].rpartition(".")[2] if command[1:3] == ["-P", "-m"] else ""
        if module not in WORKERS or command[3] != f"{self._workers}.{module}":
            return processes.start(command, log, environment)
        self.want()
        self._wanted = environment
        self._not_before = time.monotonic() + PAUSE
        return self._hand_over(command, log, environment) or processes.start(command, log, environment)

    def expect(self, environment: dict[str, str]) -> None:
        """Start it now, for a worker that will be needed as soon as another one has ended. One that this worker could
        not begin in makes room for it. The caller's worker runs already: nothing is raised."""
        self._wanted = environment
        self.want()
        self._check_child()
        if self._child is not None and handover.find_difference(self._environment, _complete(environment)):
            self._end("another environment is expected")
        if self._child is None and not self._find_objection() and host_memory.read_available() >= ROOM:
            self._start()

    def look(self, sample: Telemetry | None, live: Iterable[Record], starting: bool) -> None:
        """Start it or give it back, as the host is now."""
        self._check_child()
        if self._child is not None:
            self._read_ready()
            if reason := self._find_reason_to_end():
                self._end(reason)
        elif self._wants_start() and sample is not None:
            self._reason = self._find_objection() or _find_other_work(sample, live, starting)
            if not self._reason:
                self._start()

    def describe(self) -> WarmWorker:
        self._check_child()
        if self._child is None:
            return WarmWorker(state="none", reason=self._find_objection() or self._reason)
        memory = 0
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(self._child.pid).memory_info().rss
        self._read_ready()
        return WarmWorker(state="ready" if self._ready else "importing", pid=self._child.pid, memory=memory)

    def close(self) -> None:
        """The engine ends."""
        if self._child is not None:
            self._end("the engine has ended")

    # ── the process ───────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                environment = _without_secrets(_complete(self._build_environment()))
                ours, theirs = map(stack.enter_context, socket.socketpair())
                output = stack.enter_context(open_private(make_private(self._home.engine) / "ahead.log"))
                worker = [f"{self._workers}.ahead", "--home", str(self._home.root), "--channel", str(theirs.fileno())]
                self._child = subprocess.Popen(
                    build_command(worker, 1, None),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    cwd="/",
                    env=environment,
                    pass_fds=[theirs.fileno()],
                )
            except (OSError, ValueError, ProblemError) as error:  # ValueError: a variable that no process can have
                self._failures += 1
                self._reason = f"it could not be started: {first_line(error)}"
                self._not_before = time.monotonic() + PAUSE
                return
            self._channel = socket.socket(fileno=ours.detach())
        self._environment, self._ready, self._reason = environment, False, ""
        with contextlib.suppress(OSError):
            self._oom_score = Path(f"/proc/{self._child.pid}/oom_score_adj").read_text()
        processes.prefer_for_oom_kill(self._child.pid)

    def _build_environment(self) -> dict[str, str]:
        if self._wanted is not None:
            return self._wanted
        return self._devices.restrict(build_job_environment(dict(os.environ)))

    def _hand_over(self, command: list[str], log: Path, environment: dict[str, str]) -> Leader | None:
        """Give it this job; None when it is not there, or cannot be this job's worker."""
        self._check_child()
        child, channel = self._child, self._channel
        if child is None or channel is None:
            return None
        given = _complete(environment)
        if differs := handover.find_difference(self._environment, given):
            self._end(f"{differs} differs in the latest job's environment")
            return None
        if process.is_stopped(child.pid):
            self._end("it was stopped by a signal")
            return None
        make_private(log.parent)
        with open_private(log) as output:
            try:
                Path(f"/proc/{child.pid}/oom_score_adj").write_text(self._oom_score)
            except OSError as error:
                self._end(f"the kernel would end it first when memory runs out, and that cannot be changed: {error}")
                return None
            taken = handover.send(channel, Handover(command=command, environment=given), output.fileno())
        if not taken:
            self._end("it could not be given the latest job")
            return None
        channel.close()
        self._child = self._channel = None
        self._failures = 0
        self._reason = "the latest one has become a worker"
        with contextlib.suppress(psutil.Error):
            return Leader(child.pid, process.read_start_time(child.pid), process.read_identity(child.pid), child)
        return Leader(child.pid, time.time(), "", child)  # it has ended since: its exit status is known

    def _check_child(self) -> None:
        """Notice that it has ended by itself."""
        if self._child is not None and (status := self._child.poll()) is not None:
            self._failures = MOST_FAILURES if status == 3 else self._failures + (status != 4)
            self._end(STATUSES.get(status, f"it has ended by itself ({status}), see ahead.log in {self._home.engine}"))

    def _read_ready(self) -> None:
        if self._channel is not None and not self._ready:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._ready = self._channel.recv(1, socket.MSG_DONTWAIT) == b"!"

    def _end(self, reason: str) -> None:
        child, channel, self._child, self._channel = self._child, self._channel, None, None
        self._not_before, self._reason = time.monotonic() + PAUSE, reason
        if channel is not None:
            channel.close()
        if child is not None and child.poll() is None:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for a disk; `subprocess` reaps it later
                child.wait(DEATH)

    # ── when ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _wants_start(self) -> bool:
        return self._not_before < time.monotonic() < self._until and self._failures < MOST_FAILURES

    def _find_objection(self) -> str:
        """Why there must be none, whatever the host does."""
        asked = os.environ.get(VARIABLE)
        if sys.platform != "linux" or (self._workers != "engine.workers" and asked != "always"):
            return "this engine keeps none"
        if asked == "0":
            return f"{VARIABLE} is 0"
        if not _read_setting(self._home):
            return f"{'.'.join(SETTING)} is false in settings.yaml"
        return self._reason if self._failures >= MOST_FAILURES else ""

    def _find_reason_to_end(self) -> str:
        """Why the one that is there is given back; empty when it is kept."""
        if time.monotonic() > self._until:
            return f"given back after {IDLE / 60:g} minutes in which nobody asked for anything"
        if host_memory.read_available() < TIGHT or _read_pressure() > PRESSED:
            return "given back because memory is short"
        return self._find_objection()


def _complete(environment: dict[str, str]) -> dict[str, str]:
    """The whole environment of a worker, as `processes.start` gives it."""
    return processes.WORKER_DEFAULTS | environment


def _without_secrets(environment: dict[str, str]) -> dict[str, str]:
    """A key is the job's, and not that of a process that waits. Variables that libraries are imported by are no keys,
    though `HF_TOKEN_PATH` is named like one."""
    return {name: value for name, value in environment.items() if handover.FIXED.match(name) or not is_secret(name)}


def _find_other_work(sample: Telemetry, live: Iterable[Record], starting: bool) -> str:
    """What the host has to do first; empty when it is idle enough."""
    if host_memory.read_available() < ROOM or _read_pressure() > PRESSED:
        return "memory is short"
    if starting:
        return "a worker is starting"
    if os.environ.get(VARIABLE) == "always":
        return ""
    few = _count_cores() <= FEW_CORES
    for record in live:
        if record.run.state in states.STARTED and (few or record.stage == stages.PREPARE or not record.ranks):
            return f"{record.run.id} is running"
    if sample.host.cpu_percent > QUIET:
        return "the host is busy"
    return ""


def _count_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: a container may have few of a host's many."""
    cores = len(os.sched_getaffinity(0))
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # "max", or another version of control groups
            quota, period = " ".join((groups / file).read_text() for file in files).split()
            if int(quota) > 0:
                cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _read_pressure(file: Path = Path("/proc/pressure/memory")) -> float:
    """Per cent of the last ten seconds in which some process waited for memory; 0 where the kernel does not say."""
    try:
        return float(file.read_text().split("avg10=")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return 0.0


_read: dict[Path, tuple[int, bool]] = {}


def _read_setting(home: Home) -> bool:
    """The setting, read again when the file has changed. What cannot be read is not set."""
    try:
        changed = home.settings.stat().st_mtime_ns
    except OSError:
        return True
    if _read.get(home.settings, (0, True))[0] != changed:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        value = True
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, YAMLError):
            document = YAML(typ="safe", pure=True).load(home.settings.read_text(encoding="utf-8"))
            value = document[SETTING[0]][SETTING[1]] is not False
        _read[home.settings] = changed, value
    return _read[home.settings][1]
