"""The app on a real terminal: killed, hung up on, detached from. The run goes on, and a new cockpit shows it whole."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyte

from engine.protocol import states
from engine.protocol.home import Home
from engine.protocol.messages import Run, SeriesQuery
from tests.scripted.bench import ROOT, Engine, wait_for


class Terminal:
    """`cockpit` in a pseudo-terminal of 120 × 40 that is its controlling one, as after `ssh`."""

    def __init__(self, home: Home) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cockpit.cli", "--home", str(home.root)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.screen = pyte.Screen(120, 40)
        self._stream = pyte.ByteStream(self.screen)

    def read(self, seconds: float = 0.05) -> str:
        """What the screen shows now."""
        if self.master < 0:  # hung up
            time.sleep(seconds)
            return ""
        while select.select([self.master], [], [], seconds)[0]:
            try:
                self._stream.feed(os.read(self.master, 65536))
            except OSError:
                break
        return "\n".join(self.screen.display)

    def wait_for(self, text: str) -> None:
        wait_for(lambda: text in self.read(), 20.0, f"{text!r} on the screen")

    def step(self) -> int:
        """The step that the dashboard's header shows."""
        found = re.search(r"step ([\d,]+)/", self.read())
        return int(found[1].replace(",", "")) if found else 0

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ended(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.02)
        return self.process.poll() is not None


@contextmanager
def cockpit(engine: Engine, run: Run) -> Iterator[Terminal]:
    terminal = Terminal(engine.home)
    try:
        terminal.wait_for(run.id)
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()


def goes_on(engine: Engine, run: Run) -> None:
    """The run makes steps, and all of its curve is there."""
    step = engine.show(run).run.step
    now = engine.wait_step(run, step + 5)
    assert now.state == states.RUNNING
    reply = engine.client.request("series", SeriesQuery(run=run.id, names=["train/loss"], points=100_000))
    assert reply.series[0].first_step[: now.step] == list(range(1, now.step + 1))


def start(engine: Engine) -> Run:
    run = engine.submit(steps=100_000, pace=0.02)
    engine.wait_step(run, 5)
    return run


def test_kill_9_of_the_app(engine: Engine) -> None:
    run = start(engine)
    with cockpit(engine, run) as terminal:
        os.kill(terminal.process.pid, signal.SIGKILL)
        assert terminal.ended(2)
        goes_on(engine, run)
    with cockpit(engine, run) as again:
        again.wait_for("running")


def test_a_hang_up_ends_the_app_and_nothing_else(engine: Engine) -> None:
    run = start(engine)
    with cockpit(engine, run) as terminal:
        os.close(terminal.master)  # the connection drops: the kernel sends SIGHUP to the terminal's session
        terminal.master = -1
        assert terminal.ended(5), "the app must end by itself, not spin on a dead terminal"
        goes_on(engine, run)


def test_leaving_keys_only_detach(engine: Engine) -> None:
    run = start(engine)
    for key in (b"q", b"\x03\x03"):  # ctrl+c asks, and leaves when it is pressed again
        with cockpit(engine, run) as terminal:
            terminal.press(key)
            assert terminal.ended(5)
            assert terminal.process.returncode == 0
            last_words = terminal.read().replace("\n", "")
            assert f"Detached: {run.id} goes on" in last_words and f" stop {run.id}`" in last_words
        goes_on(engine, run)
    assert engine.states(run) == ["queued", "preparing", "running"]


def test_the_app_outlives_its_engine(engine: Engine) -> None:
    run = start(engine)
    with cockpit(engine, run) as terminal:
        engine.kill()
        engine.restart()
        now = engine.wait_step(run, terminal.step() + 50).step
        wait_for(lambda: terminal.step() >= now, 20.0, f"step {now} on the screen")
        goes_on(engine, run)
