"""Tells people elsewhere what has become of a run: completed, in trouble, begun after a wait. `engine.workers.notify`
sends it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from engine.config.profile import ProfileError
from engine.protocol import states
from engine.protocol.environment import add_code_path, remove_launcher_variables
from engine.protocol.home import Home
from engine.protocol.messages import Run
from engine.supervisor.run_record import Record
from engine.supervisor.runs import Runs

TIMEOUT = 120.0
"""Seconds after which a notice is given up."""
WAITED = 60.0
"""Seconds in the queue after which the beginning of a run is worth a notice."""
AT_ONCE = 4
"""Notices that are being sent at the same time: of a grid, many runs may fail at once."""
ASKED = ("pause.asked",)
"""Pauses that nobody needs to be told of."""
KINDS = {states.COMPLETED: "success", states.FAILED: "failure", states.LOST: "failure", states.PAUSED: "warning"}
"""State -> apprise's kind of notice."""
_SHOWN = ("train/loss", "eval/loss")


class Notice(msgspec.Struct, kw_only=True):
    """What the sending process gets."""

    title: str
    body: str
    kind: str = "info"
    urls: list[str] = []
    settings: str = ""
    """The file with further addresses."""
    picture: str = ""


class Notices:
    """`look` is called with each run that has changed. `call_soon` calls in the engine's loop, and
    `warn(record, code, message, hint)` says what was not sent."""

    def __init__(
        self,
        home: Home,
        runs: Runs,
        call_soon: Callable[[Callable[[], None]], None],
        warn: Callable[[Record, str, str, str], None],
    ) -> None:
        self._home, self._runs, self._call_soon, self._warn = home, runs, call_soon, warn
        self._since = time.time()
        self._places = threading.Semaphore(AT_ONCE)
        self._before: dict[str, tuple[str, int]] = {}
        """Run -> its state and attempt when it was last looked at."""
        self._queued: dict[str, float] = {}

    def look(self, record: Record) -> None:
        """Send a notice if the run has come into a state that is worth one since the last look."""
        run = record.run
        before = self._before.get(run.id)
        self._before[run.id] = now = (run.state, run.attempt)
        if before == now or not self._runs.is_local(record):
            return
        if run.state == states.QUEUED:
            self._queued[run.id] = time.monotonic()
            return
        waited = time.monotonic() - self._queued.pop(run.id, time.monotonic())
        begun = run.state in (states.PREPARING, states.RUNNING) and waited >= WAITED
        if before is None and (run.state not in states.ENDED or run.ended < self._since):
            return  # it was so before this engine was started
        if run.state not in KINDS and not begun:
            return
        if run.state == states.PAUSED and run.code in ASKED:
            return
        urls = self._find_urls(record)
        if urls or self._home.settings.is_file():
            self._send(record, self._write(record, urls))

    def _find_urls(self, record: Record) -> list[str]:
        try:
            return list(self._runs.load_profile(record).logging.notify)
        except (ProfileError, OSError):
            return []

    def _write(self, record: Record, urls: list[str]) -> Notice:
        picture = record.directory.plots / "loss_curve_latest.png"
        return Notice(
            title=f"{record.run.name or record.run.id} {_event(record.run)}",
            body=describe(record.run),
            kind=KINDS.get(record.run.state, "info"),
            urls=urls,
            settings=str(self._home.settings),
            picture=str(picture) if record.run.state in states.ENDED and picture.is_file() else "",
        )

    def _send(self, record: Record, notice: Notice) -> None:
        # Both the engine's and the submitter's: addresses name variables of either, and both are the same user's.
        environment = add_code_path(remove_launcher_variables(os.environ | record.environment))

        def send() -> None:
            with self._places:
                status, text = send_notice(notice, environment)
            if status:
                self._call_soon(lambda: told(status, text))

        def told(status: int, text: str) -> None:
            if record.run.id in self._runs.records:
                self._warn(
                    record,
                    "notify.failed",
                    f"a notice was not sent: {text or f'its process ended with status {status}'}",
                    "correct logging.notify of the profile, or notify.urls of settings.yaml",
                )

        # Not one of the engine's threads: a slow address would keep it from answering, and from ending.
        threading.Thread(target=send, name="notice", daemon=True).start()


def send_notice(notice: Notice, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run the process that sends it. Returns its exit status and what it printed."""
    command = [sys.executable, "-P", "-m", "engine.workers.notify"]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(notice),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # apprise names addresses with their secrets there
            env=dict(environment),
            timeout=TIMEOUT,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return 2, f"no address took it within {TIMEOUT:.0f} s"
    except OSError as error:
        return 2, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()[:500]


def _event(run: Run) -> str:
    if run.state in (states.PREPARING, states.RUNNING):
        return "has begun"
    return f"is {run.state}"


def describe(run: Run) -> str:
    """What happened, and the figures."""
    lines = [f"{run.id} on {run.host}: {run.state}" + (f", {run.reason}" if run.reason else "")]
    if run.max_steps:
        lines.append(f"step {run.step:,} of {run.max_steps:,}, attempt {run.attempt}")
    figures = [f"{name} {run.metrics[name]:.4g}" for name in _SHOWN if name in run.metrics]
    others = sorted(name for name in run.metrics if name.startswith(("eval/", "test/")) and name not in _SHOWN)
    figures += [f"{name} {run.metrics[name]:.4g}" for name in others if "." not in name][:8]
    lines += [", ".join(figures)] if figures else []
    if run.started:
        minutes, seconds = divmod(int((run.ended or time.time()) - run.started), 60)
        lines.append(
            f"took {minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"took {minutes} min {seconds} s"
        )
    if run.problem is not None:
        parts = (run.problem.title, run.problem.cause, run.problem.hint and f"→ {run.problem.hint}")
        lines += [part for part in parts if part]
    return "\n".join(lines)
