"""An engine whose workers are scripted: real supervisor, sockets, journals and processes, and no model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from engine.config.profile import find, load
from engine.protocol import journal
from engine.protocol.client import Client, find_engine
from engine.protocol.home import Home
from engine.protocol.messages import Run, RunDetail, RunRef, Submit
from tests import warm_engine
from tests.training import warm

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """The condition's first true value; fails the test when none comes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what or condition} did not come true within {seconds:g} s")


class Engine:
    """`start` brings a supervisor up; `client` is connected to it and finds the next one by itself. Supervisor and
    scripted workers are forked (see `tests.warm_engine`), with `warm` real workers too, with `cold` nothing. Modules in
    `path` take the place of installed ones; a supervisor that has such is started cold."""

    def __init__(
        self,
        home: Home,
        workers: str = "tests.scripted",
        path: Sequence[Path] = (),
        *,
        warm: bool = False,
        cold: bool = False,
    ) -> None:
        self.home, self.workers, self.path, self.warm, self.cold = home, workers, path, warm, cold
        self.process = self.start()
        self.client = Client(home, start=False)

    def start(self) -> subprocess.Popen[bytes] | warm.Forked:
        forking = warm_engine.environment() if self.warm else warm_engine.light_environment()
        if self.cold or (self.path and not self.warm):
            forking = {"PYTHONPATH": str(ROOT)}
        environment = os.environ | forking
        environment["PYTHONFAULTHANDLER"] = "1"
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, self.path), environment["PYTHONPATH"]])
        command = [
            sys.executable,
            "-P",
            "-m",
            "engine.supervisor",
            "--home",
            str(self.home.root),
            "--workers",
            self.workers,
        ]
        with open(self.home.engine_log, "ab") as log:
            start = subprocess.Popen if self.cold or self.path else warm_engine.popen
            process = start(command, env=environment, start_new_session=True, stdout=log, stderr=log, cwd="/")
        try:
            wait_for(lambda: (found := find_engine(self.home)) and found.pid == process.pid, what="the engine")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self._describe(process)}") from None
        return process

    def _describe(self, process: subprocess.Popen[bytes] | warm.Forked) -> str:
        """What a supervisor that is not found has logged, and what it does now."""
        ended = process.poll()
        if ended is None:
            process.send_signal(signal.SIGABRT)  # the fault handler writes each thread's stack
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        state = "it ran and was aborted" if ended is None else f"it had ended with {ended}"
        return f"{state}; found {find_engine(self.home)}; engine.log:\n{self.home.engine_log.read_text()}"

    def kill(self) -> None:
        """kill -9, as the kernel would."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self.start()

    def submit(self, *overrides: str, steps: int = 1000, pace: float = 0.01, kind: str = "train") -> Run:
        settings = (f"training.max_steps={steps}", f"training.learning_rate={pace}", "logging.tensorboard=false")
        profile = load(find("triples-qlora"), (*settings, *overrides))
        return self.client.request("submit", Submit(profile=profile.to_yaml(), kind=kind, directory="/"))

    def show(self, run: Run) -> RunDetail:
        return self.client.request("show", RunRef(run=run.id))

    def wait(self, run: Run, *wanted: str, seconds: float = 20.0) -> Run:
        def reached() -> Run | None:
            now = self.show(run).run
            return now if now.state in wanted else None

        return wait_for(reached, seconds, f"{run.id} in {wanted}")

    def wait_step(self, run: Run, step: int) -> Run:
        return wait_for(lambda: (now := self.show(run).run).step >= step and now, 20.0, f"step {step}")

    def steps(self, run: Run) -> list[int]:
        """Steps whose metrics the journal holds, in order."""
        entries = (entry for entry, _ in journal.read(self.home.run(run.id).events))
        return [entry.step for entry in entries if isinstance(entry, journal.Metrics)]

    def states(self, run: Run) -> list[str]:
        entries = (entry for entry, _ in journal.read(self.home.run(run.id).lifecycle))
        return [entry.state for entry in entries if isinstance(entry, journal.State)]

    def processes(self, run: Run) -> list[psutil.Process]:
        """Live processes of the run, found by the kernel's view and not by ours."""
        found = []
        for process in psutil.process_iter():
            try:
                if run.id in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(10)
