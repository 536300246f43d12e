"""The engine outlives the login that started it: every shell, cron job and worker finds it, whatever was removed. More
than 400 lines: all of it is about one set of directories and sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from engine.protocol import async_client, sockets, states, wire
from engine.protocol.async_client import AsyncClient
from engine.protocol.client import Client, find_engine
from engine.protocol.home import Home
from engine.protocol.messages import Command, ProblemError, RunList
from tests.cli.conftest import command, environment
from tests.scripted.bench import Engine, wait_for

NOBODY = 65534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")


def control(home: Home) -> Path:
    connection = wire.read_connection(home)
    assert connection is not None
    return Path(connection.control.removeprefix("ipc://"))


def cockpit(home: Home, *arguments: str, **shell: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a shell with these variables."""
    line, variables = command(*arguments), environment(home) | shell
    return subprocess.run(line, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def pid_of(home: Home) -> int:
    with Client(home, start=False) as client:
        return client.request("hello").pid


@pytest.fixture
def long_home(bare_home: Home) -> Home:
    """A home whose path is too long for sockets."""
    return Home(bare_home.root / ("long" * 20)).create()


# ── one address for all ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_shell_finds_the_engine(bare_home: Home, tmp_path: Path) -> None:
    """A login shell starts it. Cron has no runtime directory, another user's sudo a wrong one, a script a link."""
    runtime, link = tmp_path / "run", tmp_path / "link"
    runtime.mkdir(mode=0o700)
    link.symlink_to(bare_home.root, target_is_directory=True)
    assert cockpit(bare_home, "engine", "start", XDG_RUNTIME_DIR=str(runtime)).returncode == 0
    pid = pid_of(bare_home)
    shutil.rmtree(runtime)  # the last logout
    began = time.monotonic()
    for shell in ({"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "/run/user/4711"}, {"COCKPIT_HOME": str(link)}):
        done = cockpit(bare_home, "engine", "status", "--json", **shell)
        assert done.returncode == 0 and json.loads(done.stdout)["pid"] == pid, (shell, done)
    assert cockpit(bare_home, "engine", "stop", "--force", XDG_RUNTIME_DIR=str(runtime)).returncode == 0
    assert time.monotonic() - began < 25
    assert find_engine(bare_home) is None
    left = [
        [directory, *directory.iterdir()] for directory in sockets.list_directories(bare_home) if directory.exists()
    ]
    assert left == []


def test_ways_to_one_home_are_one_home(tmp_path: Path) -> None:
    (tmp_path / "real" / "home").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Home.locate(tmp_path / "link" / "home") == Home.locate(tmp_path / "real" / "home")


def test_sockets_are_in_the_home_where_its_path_is_short(long_home: Home) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="h") as short:
        home = Home(Path(short)).create()
        assert sockets.make_directory(home) == home.sockets
    elsewhere = sockets.make_directory(long_home)
    assert elsewhere != long_home.sockets
    for part in (elsewhere, elsewhere.parent):
        assert (part.stat().st_uid, stat.S_IMODE(part.stat().st_mode)) == (os.getuid(), 0o700)
    assert len(str(elsewhere)) + sockets.LONGEST_NAME <= sockets.LONGEST_PATH
    shutil.rmtree(elsewhere)


def test_a_file_system_without_sockets_is_passed_over(bare_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self, path: str) -> None:
        if str(bare_home.root) in path:
            raise PermissionError(1, "Operation not permitted")
        original(self, path)

    original = socket.socket.bind
    monkeypatch.setattr(socket.socket, "bind", bind)
    assert sockets.make_directory(bare_home) != bare_home.sockets


# ── what is removed is made again ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("home", "directory"),
        ("elsewhere", "directory"),
        ("elsewhere", "file"),
        ("home", "replaced"),
        ("home", "record"),
    ],
)
def test_an_engine_whose_socket_is_gone_is_there_again_within_seconds(
    bare_home: Home, long_home: Home, what: str, place: str
) -> None:
    home = long_home if place == "elsewhere" else bare_home
    engine = Engine(home)
    try:
        run = engine.submit(steps=100_000)
        engine.wait_step(run, 2)
        path = control(home)
        match what:
            case "directory":
                shutil.rmtree(path.parent)
            case "file":
                path.unlink()
            case "replaced":
                path.unlink()
                path.write_text("not a socket")
            case "record":
                home.connection.unlink()
                wait_for(lambda: find_engine(home), 5, "the record")
        began = time.monotonic()
        assert pid_of(home) == engine.process.pid
        assert time.monotonic() - began < 5
        # Who was connected stays so, and who comes finds the way.
        assert engine.client.request("hello").pid == engine.process.pid
        assert engine.client.request("pause", Command(run=run.id)).state == states.PAUSED
        other = engine.submit(steps=3)
        assert other.state == states.QUEUED
        engine.kill()
        engine.restart()  # at another address, perhaps: the worker looks it up
        assert engine.client.request("continue", Command(run=run.id)).state == states.RUNNING
    finally:
        for process in engine.processes(run):
            process.kill()
        engine.close()


def test_an_app_that_is_attached_finds_the_next_engine_at_another_address(long_home: Home) -> None:
    engine = Engine(long_home)

    async def follow() -> int:
        client = await AsyncClient.connect(long_home)
        try:
            assert (await client.request("hello")).pid == engine.process.pid
            engine.kill()
            shutil.rmtree(control(long_home).parent.parent, ignore_errors=True)
            await asyncio.to_thread(engine.restart)
            return (await client.request("hello")).pid
        finally:
            await client.close()

    assert asyncio.run(follow()) == engine.process.pid
    engine.close()


def test_a_client_that_is_collected_closes_no_other(engine: Engine) -> None:
    """A new socket takes the place in memory of one that was closed."""

    async def connect_again_and_again() -> None:
        for _ in range(10):
            before = await AsyncClient.connect(engine.home)
            await before.close()
            client = await AsyncClient.connect(engine.home)
            del before
            gc.collect()
            assert (await client.request("hello")).pid == engine.process.pid
            await client.close()

    asyncio.run(connect_again_and_again())


def test_a_client_that_is_closed_says_so(engine: Engine) -> None:
    """A screen may send its last request while the app exits."""

    async def ask() -> str:
        client = await AsyncClient.connect(engine.home)
        waiting = asyncio.ensure_future(client.request("hello"))
        await client.close()
        refused = await asyncio.gather(waiting, client.request("hello"), return_exceptions=True)
        return " ".join(each.problem.code for each in refused if isinstance(each, ProblemError))

    assert asyncio.run(ask()) == "engine.unreachable engine.unreachable"


def test_a_client_is_closed_at_any_moment_of_a_request(engine: Engine) -> None:
    """Each request in flight gets its reply, or a problem with a code; and nobody who follows starts an engine."""

    async def close_after(turns: int) -> list[str]:
        client = await AsyncClient.connect(engine.home)
        waiting = [asyncio.ensure_future(client.request(operation)) for operation in ("hello", "runs", "telemetry")]
        following = asyncio.ensure_future(anext(client.follow()))
        for _ in range(turns):
            await asyncio.sleep(0)
        await client.close()
        async with asyncio.timeout(10):
            ends = await asyncio.gather(*waiting, following, return_exceptions=True)
            ends += await asyncio.gather(anext(client.follow()), return_exceptions=True)
        assert isinstance(ends[-1], ProblemError)
        return [each.problem.code if isinstance(each, ProblemError) else type(each).__name__ for each in ends]

    async def close_at_each() -> set[str]:
        return {end for ends in await asyncio.gather(*map(close_after, range(0, 40, 2))) for end in ends}

    replies = {"Welcome", "RunList", "TelemetryHistory", "Snapshot"}
    assert asyncio.run(close_at_each()) <= {"engine.unreachable"} | replies


def test_a_client_is_closed_while_it_cannot_send(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeroMQ then cancels what is still to be sent, which is no cancellation of the request."""
    monkeypatch.setattr(async_client, "is_connected", lambda socket: True)

    async def ask(cancel: bool) -> object:
        client = await AsyncClient.connect(engine.home)
        connected, client._socket = client._socket, zmq.asyncio.Context.instance().socket(zmq.DEALER)
        waiting = asyncio.ensure_future(client.request("hello"))
        await asyncio.sleep(0.05)
        if cancel:
            waiting.cancel()
        await client.close()
        connected.close(linger=0)
        return (await asyncio.gather(waiting, return_exceptions=True))[0]

    refused = asyncio.run(ask(False))
    assert isinstance(refused, ProblemError) and refused.problem.code == "engine.unreachable"
    assert isinstance(asyncio.run(ask(True)), asyncio.CancelledError)


# ── nobody there ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_peer_is_said_at_once(engine: Engine) -> None:
    engine.client.request("hello")
    os.kill(engine.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ProblemError, match="is stopped") as stopped:
        engine.client.request("hello")
    os.kill(engine.process.pid, signal.SIGCONT)
    assert stopped.value.problem.code == "engine.unreachable" and time.monotonic() - began < 3
    engine.kill()
    began = time.monotonic()
    with pytest.raises(ProblemError, match="No engine is running"):
        engine.client.request("hello")
    with pytest.raises(ProblemError, match="No engine is running"):
        Client(engine.home, start=False)
    assert time.monotonic() - began < 1


def test_a_client_that_has_found_nobody_finds_the_next_engine(engine: Engine) -> None:
    engine.client.request("hello")
    engine.kill()
    for _ in range(2):
        with pytest.raises(ProblemError, match="No engine is running"):
            engine.client.request("hello")
    engine.restart()
    assert engine.client.request("hello").pid == engine.process.pid


def test_an_engine_that_dies_during_a_request_is_said_at_once(engine: Engine) -> None:
    import threading

    run = engine.submit(steps=100_000)
    engine.wait_step(run, 2)
    for process in engine.processes(run):
        process.suspend()  # its worker does not answer
    threading.Timer(0.5, engine.kill).start()
    began = time.monotonic()
    with pytest.raises(ProblemError, match=r"has ended|closed the connection"):
        engine.client.request("pause", Command(run=run.id))
    assert time.monotonic() - began < 5


def test_an_engine_that_cannot_be_asked_is_stopped_all_the_same(bare_home: Home) -> None:
    engine = Engine(bare_home)
    os.kill(engine.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    done = cockpit(bare_home, "engine", "stop", "--force")
    assert done.returncode == 0 and "Jobs go on" in done.stderr, done
    assert time.monotonic() - began < 20
    assert engine.process.wait(5) == -signal.SIGKILL
    engine.client.close()


# ── other users ───────────────────────────────────────────────────────────────────────────────────────────────────────


def as_nobody(action) -> int:
    """The exit status of a child process of another user that runs `action`."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os._exit(action() or 0)
        except BaseException:  # noqa: BLE001
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@root_only
@pytest.mark.parametrize("theirs", ["directory", "file", "open"])
def test_a_socket_that_another_user_has_made_gets_nothing(long_home: Home, theirs: str) -> None:
    """The engine is stopped, so that it does not bind anew; the squatter listens where it was."""
    engine = Engine(long_home)
    path = control(long_home)
    os.kill(engine.process.pid, signal.SIGSTOP)
    shutil.rmtree(path.parent)
    path.parent.mkdir(mode=0o700)
    heard = zmq.Context()
    squatter = heard.socket(zmq.ROUTER)
    squatter.bind(f"ipc://{path}")
    if theirs == "open":
        path.parent.chmod(0o777)
    else:
        os.chown(path.parent if theirs == "directory" else path, NOBODY, NOBODY)
    try:
        with pytest.raises(ProblemError) as refused:
            Client(long_home).request("runs", RunList(runs=[]))
        assert refused.value.problem.code == "engine.other_user"
        assert not squatter.poll(300), "something was sent to another user"
    finally:
        heard.destroy(linger=0)
        os.kill(engine.process.pid, signal.SIGCONT)
        shutil.rmtree(path.parent, ignore_errors=True)
        engine.close()


@root_only
def test_the_process_behind_the_socket_is_looked_at(tmp_path: Path) -> None:
    """The file is ours, and yet another user listens: it was made by a process that has changed its user since."""
    tmp_path.chmod(0o700)
    path = tmp_path / "control"
    parent, child = os.pipe()
    pid = os.fork()
    if pid == 0:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            os.setuid(NOBODY)
            bound.listen(1)
            os.write(child, b"!")
            time.sleep(30)
        os._exit(0)
    os.read(parent, 1)
    try:
        with pytest.raises(ProblemError, match=f"belongs to the user {NOBODY}"):
            sockets.check_peer(f"ipc://{path}")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@root_only
def test_the_engine_does_not_listen_to_another_user(long_home: Home) -> None:
    engine = Engine(long_home)
    path = control(long_home)
    path.chmod(0o666)
    # A link to the socket where the other user may look. The directory of all homes' sockets stays private: engines of
    # other tests are started meanwhile.
    public = Path(tempfile.mkdtemp(dir=path.parents[2]))
    public.chmod(0o711)
    door = public / "door"
    os.link(path, door)

    def ask() -> int:
        context = zmq.Context()
        client = context.socket(zmq.DEALER)
        client.linger = 0
        monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        client.connect(f"ipc://{door}")
        client.send(b"hello")
        return 7 if monitor.poll(700) else 0

    try:
        assert as_nobody(ask) == 0
        assert engine.client.request("hello").pid == engine.process.pid
    finally:
        shutil.rmtree(public)
        engine.close()


@root_only
def test_a_directory_of_another_user_is_passed_over(long_home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    monkeypatch.setattr(sockets, "ELSEWHERE", (first, second))
    for base in (first, second):
        base.mkdir()
    taken = first / f"cockpit-{os.getuid()}"
    taken.mkdir(mode=0o777)
    os.chown(taken, NOBODY, NOBODY)
    monkeypatch.setattr(sockets, "LONGEST_PATH", 200)
    monkeypatch.setattr(Home, "sockets", taken)
    assert sockets.make_directory(long_home).parent.parent == second
