"""The worker that is kept ahead: nobody can tell it from one started for its job, and nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from engine.hardware import host_memory
from engine.protocol import handover
from engine.protocol.home import Home
from engine.supervisor import ahead as module
from engine.supervisor import processes
from engine.supervisor.ahead import Ahead
from engine.supervisor.devices import Devices
from engine.supervisor.launchers.local import build_command
from engine.workers import ahead as worker
from tests.scripted.bench import ROOT, Engine, wait_for

PACKAGE = "tests.scripted_ahead"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process's command line is changed on Linux alone")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv(module.VARIABLE, "always")
    own = {"KEPT": "ä b\nc", "LIBRARY_FORCES": "0", "LIBRARY_REMOVES": "0"}
    return {"PATH": os.environ["PATH"], "HOME": "/", "PYTHONPATH": str(ROOT), **own}


@pytest.fixture
def ahead(environment: dict[str, str], bare_home: Home) -> Iterator[Ahead]:
    keeper = Ahead(bare_home, PACKAGE, Devices(list))
    yield keeper
    keeper.close()


def ready(keeper: Ahead, environment: dict[str, str]) -> int:
    keeper.expect(environment)
    wait_for(lambda: keeper.describe().state == "ready", 30, "the worker ahead")
    return keeper.describe().pid


def command(home: Home, *more: str) -> list[str]:
    worker = [f"{PACKAGE}.chat", "--home", str(home.root), "--job", "chat-1", "--options", '{"a": "b c"}', *more]
    return build_command(worker, 1, None)


def outcome(leader: processes.Leader, log: Path) -> dict[str, Any]:
    wait_for(leader.has_ended, 30, "the worker's end")
    assert leader.status == 7, log.read_text()
    told: dict[str, Any] = json.loads(log.read_text())
    return told


def test_a_warm_worker_is_as_a_cold_one(ahead: Ahead, environment: dict[str, str], bare_home: Home) -> None:
    line, log = command(bare_home), bare_home.root / "own" / "log.txt"
    cold = outcome(processes.start(line, log, environment), log)
    log.unlink()
    pid = ready(ahead, environment | {"OTHER": "1", "CUDA_VISIBLE_DEVICES": "0", "OTHER_API_KEY": "secret"})
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    leader = ahead.start(line, log, environment)
    assert leader.pid == pid and ahead.describe().state == "none"
    warm = outcome(leader, log)
    assert (warm.pop("warm"), cold.pop("warm")) == (True, False)
    assert warm == cold
    assert cold["line"].split("\0")[:-1] == line
    assert "LIBRARY_SETS" in warm["environ"] and "OTHER" not in warm["environ"]


@pytest.mark.parametrize(
    "change",
    [
        {"OMP_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "3"},
        {"HF_HOME": "/x"},
        {"MALLOC_ARENA_MAX": "1"},
        {"LIBRARY_READS": "yes"},
        {"LD_LIBRARY_PATH": "/x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_imports_have_read_starts_a_job_cold(
    ahead: Ahead, environment: dict[str, str], bare_home: Home, change: dict[str, str]
) -> None:
    log = bare_home.root / "log.txt"
    ready(ahead, environment)
    told = outcome(ahead.start(command(bare_home), log, environment | change), log)
    assert (
        not told["warm"]
        and told["environ"].items() >= change.items()
        and told["library"] == change.get("LIBRARY_READS")
    )


def test_a_job_that_comes_during_the_imports_or_after_a_change_of_the_sources_is_done(
    ahead: Ahead, environment: dict[str, str], bare_home: Home
) -> None:
    log = bare_home.root / "log.txt"
    ahead.expect(environment)
    outcome(ahead.start(command(bare_home), log, environment), log)
    library = ROOT / "tests" / "scripted_ahead" / "library.py"
    stat = library.stat()
    pid = ready(ahead, environment)
    try:
        os.utime(library, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        leader = ahead.start(command(bare_home), (other := bare_home.root / "other.txt"), environment)
        assert leader.pid == pid and not outcome(leader, other)["warm"]
    finally:
        os.utime(library, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "fault", ["changed", "impossible", "not importable", "not readable", "not renamed", "a device is open"]
)
def test_a_job_that_comes_as_it_ends_is_done(
    environment: dict[str, str], bare_home: Home, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The job is handed over before the process ends by itself, or finds that it cannot be that job's: it must not be
    lost with it, not even where ahead.log is on a full disk."""
    script = {
        "changed": "ahead.PATIENCE = 0; ahead.select.select = lambda *_: ([], [], []); ahead.MODULES = ('decimal',); "
        "seen = iter(range(99)); ahead._stat = lambda _: {'x': (next(seen), 0)}",
        "impossible": "ahead.can_rename = lambda: False",
        "not importable": "ahead.MODULES = ('no_such_module',)",
        "not readable": "ahead.read_environment = lambda: open('/no such file')",
        "not renamed": "ahead.MODULES = ('decimal',); ahead.rename = lambda *_: open('/no such file')",
        "a device is open": "ahead.MODULES = ('decimal',); ahead.find_open_device = lambda: '/dev/nvidia0'",
    }[fault]
    ours, theirs = socket.socketpair()
    start = f"from engine.workers import ahead; ahead.FURTHER = (); {script}; ahead.main()"
    log = bare_home.root / "log.txt"
    work = handover.Handover(command=command(bare_home), environment=environment)
    with log.open("wb") as output, open("/dev/full", "wb") as full:
        assert handover.send(ours, work, output.fileno())
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", start, "--home", "/", "--channel", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdout=full,
            stderr=full,
        )
        theirs.close()
        assert child.wait(30) == 7, log.read_text()
        assert not json.loads(log.read_text())["warm"]
        assert not handover.send(ours, work, output.fileno())


def test_a_job_that_it_cannot_take_is_started_cold(ahead: Ahead, environment: dict[str, str], bare_home: Home) -> None:
    log = bare_home.root / "log.txt"
    pid = ready(ahead, environment)
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)], 1) if psutil.pid_exists(pid) else None
    assert not outcome(ahead.start(command(bare_home), log, environment), log)["warm"]
    log.unlink()
    ready(ahead, environment)
    large = environment | {"LARGE" + str(number): "x" * 60_000 for number in range(3)}
    assert not outcome(ahead.start(command(bare_home), log, large), log)["warm"]
    log.unlink()
    pid = ready(ahead, environment)
    os.kill(pid, signal.SIGSTOP)
    assert not outcome(ahead.start(command(bare_home), log, environment | {"BYTES": "\udcff"}), log)["warm"]
    log.unlink()
    ready(ahead, environment)
    assert not outcome(ahead.start(command(bare_home), log, environment | {"BYTES": "\udcff"}), log)["warm"]


def test_a_job_is_found_and_ended_before_it_has_its_command_line(
    ahead: Ahead, environment: dict[str, str], bare_home: Home
) -> None:
    ready(ahead, environment)
    leader = ahead.start(command(bare_home, "--wait"), bare_home.root / "log.txt", environment)
    os.kill(leader.pid, signal.SIGSTOP)  # most likely it has not taken the job yet
    assert [each.pid for each in processes.find_processes("chat-1", bare_home.root, leader)] == [leader.pid]
    processes.end_processes(processes.find_processes("chat-1", bare_home.root, leader), 0)
    wait_for(leader.has_ended, 10, "its end")
    assert not processes.find_processes("chat-1", bare_home.root, leader)


def test_nothing_is_raised_where_it_cannot_be_started(
    ahead: Ahead, environment: dict[str, str], bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_private", refuse)
        ahead.expect(environment)
    assert "No space left" in ahead.describe().reason
    ahead.expect(environment | {"NUL": "\0"})
    assert "null byte" in ahead.describe().reason


def test_another_environment_takes_its_place(ahead: Ahead, environment: dict[str, str], bare_home: Home) -> None:
    ahead.expect(environment)
    first = ahead.describe().pid
    ahead.expect(environment)
    assert ahead.describe().pid == first
    ahead.expect(environment | {"OMP_NUM_THREADS": "3"})
    assert ahead.describe().pid not in (0, first)


def test_an_open_device_is_found(tmp_path: Path) -> None:
    for number, target in enumerate(("/dev/null", "socket:[1]", "/tmp/dev/nvidia0")):
        (tmp_path / str(number)).symlink_to(target)
    assert worker.find_open_device(tmp_path) == ""
    (tmp_path / "9").symlink_to("/dev/nvidiactl")
    assert worker.find_open_device(tmp_path) == "/dev/nvidiactl"


def test_it_is_started_on_an_idle_host_alone_and_given_back(
    ahead: Ahead, environment: dict[str, str], bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(Ahead, "_start", lambda self: started.append(True))
    monkeypatch.setattr(host_memory, "read_available", lambda: 8 << 30)
    monkeypatch.setattr(module, "_read_pressure", lambda: 0.0)
    monkeypatch.setattr(Ahead, "_find_objection", lambda self: "")
    monkeypatch.setenv(module.VARIABLE, "")

    def look(percent: float = 5, cores: int = 2, live: Any = (), starting: bool = False) -> str:
        started.clear()
        monkeypatch.setattr(module, "_count_cores", lambda: cores)
        host = SimpleNamespace(cpu_percent=percent)
        ahead.look(SimpleNamespace(host=host), live, starting)  # type: ignore[arg-type]
        return "" if started else ahead.describe().reason

    training = SimpleNamespace(run=SimpleNamespace(id="r", state="running"), stage="train", ranks={0: 1})
    assert look() == "" and look(cores=64, live=[training]) == ""
    assert look(percent=90) == "the host is busy"
    assert look(live=[training]) == "r is running"
    assert look(starting=True) == "a worker is starting"
    monkeypatch.setattr(host_memory, "read_available", lambda: 1 << 30)
    assert look() == "memory is short"
    monkeypatch.setattr(host_memory, "read_available", lambda: 8 << 30)
    ahead._until = time.monotonic() - 1
    assert look() != ""


def test_a_container_has_the_cores_of_its_control_group(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert module._count_cores(tmp_path) == cores
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert module._count_cores(tmp_path) == cores
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert module._count_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, counted in (("-1", cores), ("50000", 1)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
        assert module._count_cores(tmp_path) == counted


def test_idle_time_pressure_and_the_setting_end_it(
    ahead: Ahead, environment: dict[str, str], bare_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed() -> None:
        monkeypatch.setattr(module, "_read_pressure", lambda: 50.0)

    def idle() -> None:
        monkeypatch.setattr(module, "_read_pressure", lambda: 0.0)
        ahead._until = time.monotonic() - 1

    def off() -> None:
        bare_home.settings.write_text("engine: {warm_worker: false}\n")

    changes: list[tuple[Callable[[], None], str]] = [
        (pressed, "memory"),
        (idle, "10 minutes"),
        (off, "settings.yaml"),
    ]
    monkeypatch.setattr(module, "_read_pressure", lambda: 0.0)
    for change, reason in changes:
        ahead.expect(environment)
        pid = ahead.describe().pid
        change()
        ahead.look(None, (), False)
        assert reason in ahead.describe().reason and not psutil.pid_exists(pid)
    ahead.expect(environment)
    assert ahead.describe().state == "none"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_nothing_is_left_when_the_engine_ends(environment: dict[str, str], bare_home: Home, end: str) -> None:
    engine = Engine(bare_home, PACKAGE)
    try:
        pid = wait_for(lambda: (warm := engine.client.request("hello").warm) and warm.pid, 30, "the worker ahead")
        waiting = psutil.Process(pid)
        assert waiting.ppid() == engine.process.pid and str(bare_home.root) in waiting.cmdline()
        engine.kill() if end == "kill" else engine.close()
        wait_for(lambda: not waiting.is_running() or waiting.status() == psutil.STATUS_ZOMBIE, 10, "its end")
    finally:
        engine.close()


@pytest.mark.slow
def test_the_libraries_touch_no_device_and_start_no_threads_of_their_own(bare_home: Home, tmp_path: Path) -> None:
    job = tmp_path / "told.py"
    job.write_text(
        "import json, os, sys, torch\n"
        "tasks = [open(f'/proc/self/task/{each}/comm').read() for each in os.listdir('/proc/self/task')]\n"
        "print(json.dumps([tasks, torch.cuda.is_initialized(), torch.get_num_threads(), os.environ['X'],"
        " 'peft' in sys.modules, 'torch._inductor.compile_fx' in sys.modules,"
        " open('/proc/self/maps').read().count('libcuda.so')]))\n"
    )
    ours, theirs = socket.socketpair()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "2"}
    line = build_command(["engine.workers.ahead", "--home", "/", "--channel", str(theirs.fileno())], 1, None)
    child = subprocess.Popen(line, env=environment, pass_fds=[theirs.fileno()], cwd="/")
    theirs.close()
    assert ours.recv(1) == b"!"
    given = environment | {"X": "mine", "CUDA_VISIBLE_DEVICES": "-1", "SSH_TTY": "/dev/pts/7", "SHLVL": "9"}
    with (log := tmp_path / "log").open("wb") as output:
        work = handover.Handover(command=build_command(["told"], 1, None), environment=given)
        assert handover.send(ours, work, output.fileno())
    assert child.wait(60) == 0, log.read_text()
    tasks, initialized, threads, own, *imported = json.loads(log.read_text())
    assert set(tasks) == {"python\n"} and len(tasks) <= (os.cpu_count() or 1)  # numpy's OpenBLAS has its own at once
    assert (initialized, threads, own, imported) == (False, 2, "mine", [True, False, 0])
