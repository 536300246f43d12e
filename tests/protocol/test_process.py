"""A process is known by boot and clock ticks, which no clock that is set can move."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from engine.protocol import process

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)", "a (strange) name) 7"]


@pytest.fixture
def sleeper():
    with subprocess.Popen(SLEEPER) as child:
        yield child
        child.kill()


def test_a_clock_that_was_set_makes_no_process_another(sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    started, identity = process.read_start_time(sleeper.pid), process.read_identity(sleeper.pid)
    for step in (-86400.0, -5.0, 5.0, 86400.0):
        monkeypatch.setattr(psutil.Process, "create_time", lambda _, step=step: started + step)
        assert process.is_alive(sleeper.pid, started, identity), step


def test_another_process_with_the_same_pid_is_another(sleeper) -> None:
    started = process.read_start_time(sleeper.pid)
    boot, _, ticks = process.read_identity(sleeper.pid).partition("/")
    assert not process.is_alive(sleeper.pid, started, f"{boot}/{int(ticks) - 1}", "a (strange) name) 7")
    assert not process.is_alive(sleeper.pid, started, f"0{boot[1:]}x/{ticks}")


def test_a_record_without_identity_is_understood(sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    started = process.read_start_time(sleeper.pid)
    assert process.is_alive(sleeper.pid, started)
    assert process.is_alive(sleeper.pid, started - 3600, argument="a (strange) name) 7"), "the clock was set"
    assert not process.is_alive(sleeper.pid, started - 3600, argument="another job")
    assert not process.is_alive(sleeper.pid, started - 3600)
    monkeypatch.setattr(process, "read_identity", lambda pid: "")  # a host without /proc
    assert process.is_alive(sleeper.pid, started, "boot/17")


def test_an_ended_process_is_not_alive(sleeper) -> None:
    started, identity = process.read_start_time(sleeper.pid), process.read_identity(sleeper.pid)
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not process.is_alive(sleeper.pid, started, identity), "a zombie"
    sleeper.wait()
    assert not process.is_alive(sleeper.pid, started, identity)
    assert process.read_identity(sleeper.pid) == ""
    assert process.read_identity(os.getpid()) == process.read_identity(os.getpid())
