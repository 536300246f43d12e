"""The link to an engine behind a real sshd: it comes back from every death, opens no port, and leaves nothing."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from cockpit.connection import link as link_module
from cockpit.connection.agent import Found
from cockpit.connection.link import Link
from cockpit.connection.ssh import RemoteHost
from cockpit.connection.versions import check_versions
from engine.protocol import sockets, wire
from engine.protocol.client import Client, find_engine
from engine.protocol.home import Home
from engine.protocol.messages import PROTOCOL, ProblemError, Snapshot, Stop
from tests.conftest import end_processes_of
from tests.remote.conftest import list_links
from tests.remote.loopback import Loopback
from tests.scripted.bench import ROOT, Engine, wait_for


@pytest.fixture
def link(far: Loopback) -> Iterator[Link]:
    link = Link(RemoteHost.parse("alpha"))
    yield link
    link.close()
    assert not list_links()


def next_snapshot(bodies: Iterator[Any]) -> float:
    """Seconds until the client has attached again."""
    began = time.monotonic()
    for body in bodies:
        if isinstance(body, Snapshot):
            return time.monotonic() - began
    raise AssertionError("the client follows no more")


def test_a_client_attaches_again_after_every_death(
    far: Loopback, alpha: Engine, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.protocol.client.EVENT_TIMEOUT", 2.0)
    run = alpha.submit(steps=10_000)
    alpha.wait_step(run, 1)
    with Client(link) as client:
        bodies = client.follow()
        next_snapshot(bodies)
        [ssh] = far.find_clients()
        ssh.kill()
        assert next_snapshot(bodies) < 10
        far.kill_sessions()
        assert next_snapshot(bodies) < 10
        alpha.kill()
        alpha.restart()
        assert next_snapshot(bodies) < 10
        assert [each.id for each in client.request("runs").runs if each.state == "running"] == [run.id]
        suspended = psutil.Process(alpha.process.pid)
        suspended.suspend()
        try:
            with pytest.raises(ProblemError) as raised:
                link.open()
            assert raised.value.problem.hint == f"kill -CONT {suspended.pid}"
        finally:
            suspended.resume()
    alpha.client.request("stop", Stop(run=run.id, now=True))


def test_a_cable_that_was_cut(far: Loopback, alpha: Engine, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes any more, and no process ends."""
    monkeypatch.setattr(link_module, "ANSWER", 1.0)
    link.start()
    [ssh] = far.find_clients()
    ssh.suspend()
    assert link.start() is None
    [again] = far.find_clients()
    assert again.pid != ssh.pid
    with Client(link) as client:
        assert client.request("hello").pid == alpha.process.pid


def test_the_far_engine_is_started(far: Loopback) -> None:
    home = Home(far.home("beta"))
    end_processes_of(home)
    assert find_engine(home) is None
    link = Link(RemoteHost.parse("beta"))
    try:
        with Client(link) as client:
            assert client.request("hello").home == str(home.root)
            bodies = client.follow()
            next_snapshot(bodies)
            engine = find_engine(home)
            assert engine is not None
            os.kill(engine.pid, signal.SIGKILL)
            assert next_snapshot(bodies) < 15
            again = find_engine(home)
            assert again is not None and again.pid != engine.pid
    finally:
        link.close()


def test_no_port_is_opened_and_the_sockets_are_the_owners_alone(far: Loopback, alpha: Engine, link: Link) -> None:
    with Client(link):
        folder = next(iter(list_links()))
        for path in (folder, folder.parent):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for path in folder.iterdir():
            assert not path.stat().st_mode & 0o077, path
        [client] = far.find_clients()
        assert far.find_sessions()
        for process in (client, *far.find_sessions(), psutil.Process(alpha.process.pid)):
            assert not [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    link.close()
    assert not far.find_clients()


def test_ssh_ends_with_a_cockpit_that_is_killed(far: Loopback, alpha: Engine) -> None:
    """And what it left in /tmp is removed by the next one."""
    program = (
        "import sys, time\nfrom cockpit.connection.link import Link\nfrom cockpit.connection.ssh import RemoteHost\n"
        "link = Link(RemoteHost.parse('alpha'))\nlink.start()\nprint(link._folder, flush=True)\ntime.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert folder.is_dir()
    assert far.find_clients()
    owner.kill()
    owner.wait()
    wait_for(lambda: not far.find_clients(), 10.0, "the end of ssh")
    next_link = Link(RemoteHost.parse("nowhere"))
    with pytest.raises(ProblemError):
        next_link.start()
    assert not folder.exists()
    next_link.close()


def far_script(far: Loopback, *lines: str) -> str:
    """A host whose cockpit is this script."""
    script = far.folder / f"other-{time.monotonic_ns()}.sh"
    script.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    script.chmod(0o755)
    return f"alpha:{script}"


def test_what_start_up_files_print_is_passed_over(far: Loopback, alpha: Engine) -> None:
    name = far_script(far, "echo 'Welcome to alpha'", "echo '{\"id\": 1}'", f'exec {far.cockpit} "$@"')
    link = Link(RemoteHost.parse(name))
    try:
        assert link.start() is None
    finally:
        link.close()


def found(protocol: int, installed: int) -> Found:
    engine = wire.Connection(
        pid=1, start_time=0.0, protocol=protocol, session="s", host="alpha", control="ipc:///x", workers="ipc:///y"
    )
    return Found(id=1, protocol=installed, version="9.9", home="/h", directory="/", connection=engine)


def without_engine(installed: int) -> Found:
    return msgspec.structs.replace(found(PROTOCOL, installed), connection=None)


FAR_SIDES = {
    "older there": (found(PROTOCOL - 1, PROTOCOL - 1), "update cockpit on alpha"),
    "newer there": (found(PROTOCOL + 1, PROTOCOL + 1), "update the cockpit here to version 9.9"),
    "an old engine there": (found(PROTOCOL - 1, PROTOCOL), "cockpit --on alpha engine stop"),
    "no engine, older there": (without_engine(PROTOCOL - 1), "update cockpit on alpha"),
    "no engine, newer there": (without_engine(PROTOCOL + 1), "update the cockpit here to version 9.9"),
    "the engine of a newer cockpit": (found(PROTOCOL + 1, PROTOCOL), "cockpit --on alpha engine stop"),
}


@pytest.mark.parametrize("name", FAR_SIDES)
def test_another_version_is_told_with_the_side_to_update(name: str) -> None:
    there, hint = FAR_SIDES[name]
    with pytest.raises(ProblemError) as raised:
        check_versions(RemoteHost.parse("alpha"), there)
    assert raised.value.problem.code == "engine.protocol_mismatch"
    assert hint in raised.value.problem.hint


def test_another_version_is_noticed_on_the_link(far: Loopback) -> None:
    """The far side's record is faked: it answers the first request as a newer cockpit would, and is asked for no
    engine."""
    reply = msgspec.json.encode(without_engine(PROTOCOL + 1)).decode()
    link = Link(RemoteHost.parse(far_script(far, f"read line; echo '{reply}'", "cat >/dev/null")))
    with pytest.raises(ProblemError) as raised:
        link.start()
    assert raised.value.problem.code == "engine.protocol_mismatch"
    link.close()


ENDS = {
    "remote.no_cockpit": ("exec /no/such/program",),
    "remote.too_old": ("""echo '{"error": {"code": "request.usage", "title": "invalid choice"}}'; exit 2""",),
    "home.invalid": ("""echo '{"error": {"code": "home.invalid", "title": "It is a file"}}'; exit 2""",),
    "remote.ended": ("echo 'MemoryError' >&2; exit 1",),
    "remote.silent": ("exec cat >/dev/null",),
}


@pytest.mark.parametrize("code", ENDS)
def test_a_far_side_that_does_not_answer(far: Loopback, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOGIN", 2.0)
    link = Link(RemoteHost.parse(far_script(far, *ENDS[code])))
    with pytest.raises(ProblemError) as raised:
        link.start()
    assert raised.value.problem.code == code
    link.close()


def test_forwarding_that_the_far_side_forbids(far: Loopback, alpha: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "DIAL", 1.0)
    configuration = far.folder / "sshd_config"
    before = configuration.read_text()
    configuration.write_text(f"AllowStreamLocalForwarding no\n{before}")
    far.stop()
    far.restart()
    link = Link(RemoteHost.parse("alpha"))
    try:
        with pytest.raises(ProblemError) as raised:
            Client(link)
        assert raised.value.problem.code == "remote.forward_failed"
        assert "open failed" in raised.value.problem.cause
    finally:
        link.close()
        configuration.write_text(before)
        far.stop()
        far.restart()


HOSTS = {
    "gpu7": ("gpu7", "cockpit"),
    "ada@gpu7": ("ada@gpu7", "cockpit"),
    "ada@gpu7:/opt/my env/bin/cockpit": ("ada@gpu7", "'/opt/my env/bin/cockpit'"),
    "ada@gpu7:~/my env/cockpit": ("ada@gpu7", "~/'my env/cockpit'"),
    "ssh://ada@gpu7:2222": ("ssh://ada@gpu7:2222", "cockpit"),
    "ssh://ada@gpu7:2222:~/cockpit": ("ssh://ada@gpu7:2222", "~/cockpit"),
    "ssh://[fe80::1]:22:/opt/cockpit": ("ssh://[fe80::1]:22", "/opt/cockpit"),
    "fe80::1:/opt/cockpit": ("fe80::1", "/opt/cockpit"),
}


@pytest.mark.parametrize("text", HOSTS)
def test_hosts_are_written_as_for_ssh(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCKPIT_REMOTE", raising=False)
    host = RemoteHost.parse(text)
    assert (host.destination, host.cockpit, host.text) == (*HOSTS[text], text)


@pytest.mark.parametrize("text", ["gpu7:", "gpu7:22", "ssh://gpu7:", "gpu7:~$(x)/cockpit", "gpu7:~", "a b", "-x", ""])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ProblemError) as raised:
        RemoteHost.parse(text)
    assert raised.value.problem.code == "remote.host_invalid"


@pytest.mark.parametrize("ask", [True, False])
def test_every_connection_is_given_up_when_nothing_comes(ask: bool) -> None:
    line = RemoteHost.parse("gpu7").build_ssh("-T", command="cockpit runs", ask=ask)
    for option in ("ServerAliveInterval=5", "ServerAliveCountMax=3", "ConnectTimeout=15", "RemoteCommand=none"):
        assert line[line.index(option) - 1] == "-o"
    assert ("BatchMode=yes" in line) is not ask


@pytest.mark.parametrize("ssh", ["ssh '", "/no/such/ssh", "/"])
def test_an_ssh_that_cannot_be_started_is_a_problem(ssh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCKPIT_SSH", ssh)
    link = Link(RemoteHost.parse("gpu7"))
    for act in (link.start, lambda: link.connect(ask=False)):
        with pytest.raises(ProblemError):
            act()
    with pytest.raises(ProblemError):
        link.build_command("runs")
    assert not list_links()


def test_a_full_tmp_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(link_module, "open_private", refuse)
    link = Link(RemoteHost.parse("gpu7"))
    with pytest.raises(ProblemError) as raised:
        link.start()
    assert raised.value.problem.cause == "No space left on device"
    assert not list_links()


def test_a_directory_that_is_in_use_is_left_alone() -> None:
    """Whatever its process id says, which means nothing in another container."""
    used = sockets.make_temporary("ssh")
    left = used.with_name(f"ssh-{os.getpid()}-left")
    left.mkdir(mode=0o700)
    program = "from engine.protocol import sockets; sockets.remove_temporary(sockets.make_temporary('ssh'))"
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert used.is_dir() and not left.exists()
    sockets.remove_temporary(used)
    assert not used.exists()
