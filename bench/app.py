"""Speed of the app: `--help`, the first useful words, the dashboard left open, and key press to paint on a slow link.

    python -m bench.app

The app runs in a real pseudo-terminal beside a scripted run. Wall times grow when other programs use the cores, so each
is measured in turn with something minimal, and the load average is saved with the figures.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from bench.report import save
from cockpit.state.formatting import format_number
from engine.protocol.home import Home
from engine.protocol.messages import ListRuns, Run, Shutdown
from tests.scripted.bench import Engine
from tests.scripted.homes import make_finished_runs

COCKPIT = str(Path(sys.executable).with_name("cockpit"))
MINIMAL = """\
from textual.app import App
from textual.widgets import Static


class Minimal(App):
    def compose(self):
        yield Static("Hello")


Minimal().run()
"""
RUNS, STEPS = 2000, 300
"""In the home with many runs."""
ADVICE = "cockpit train PROFILE"
"""The last words of what a home without runs shows."""
STARTS = 9
"""Rounds of what only starts; one more before them, thrown away, warms the caches."""
LIVE_ROUNDS = 3
"""Rounds at a live run: a rest, then the keys `PRESSES` times."""
REST = 20.0
PRESSES = 2
PACE = 0.3
"""Seconds a step of the live run."""
SLOW = 50_000.0
"""Bytes/s of the slow link."""
CHUNK = 512
"""Bytes read at once from the slow link: 10 ms of it."""
ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P][^\x07\x1b]*(?:\x07|\x1b\\)|[()].|[=>78])")
"""Control sequences: what is left of a stream without them is painted."""
WHOLE = "Esc closes"
"""The help's foot, painted last."""
KEYS = {
    "y": (b"y", ["· log"]),
    "+": (b"+", ["newest 1/2"]),
    "-": (b"-", ["· log"]),
    "y, back": (b"y", []),
    "?": (b"?", [WHOLE]),
    "escape": (b"\x1b", ["smoothed"]),
}
"""Keys in the order they are pressed and what each paints in its turn: the foot of the chart, which comes after its
curve; the help's foot; the foot of the chart below it. Those without are only the way back."""


class Terminal:
    """A program in a pseudo-terminal of 120 × 40 in true colour, its controlling one."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def read(self, seconds: float, wanted: str | None = None, rate: float | None = None) -> bytes:
        """What comes within these seconds or until `wanted` is painted, at `rate` bytes/s at most."""
        got, ready = b"", time.perf_counter()
        deadline = ready + seconds
        while (now := time.perf_counter()) < deadline:
            if not select.select([self.master], [], [], min(0.05, deadline - now))[0]:
                continue
            with suppress(OSError):  # it has ended
                got += (piece := os.read(self.master, CHUNK if rate else 65536))
            if rate:
                ready = max(ready, now) + len(piece) / rate
                time.sleep(max(0.0, ready - time.perf_counter()))
            if wanted is not None and wanted in painted(got):
                break
        return got

    def first_paint(self, words: tuple[str, ...]) -> float:
        """Seconds from the start of the process until these words are painted."""
        got = b""
        while not all(word in painted(got) for word in words):
            got += os.read(self.master, 65536)
        return time.perf_counter() - self.began

    def end(self) -> float:
        """End the program. Returns the seconds of a core that it has taken."""
        self.process.kill()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        os.close(self.master)
        return usage.ru_utime + usage.ru_stime


def painted(stream: bytes) -> str:
    return ESCAPES.sub(b"", stream).decode(errors="replace")


def milliseconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1e3


def first_paint(words: tuple[str, ...], *command: str) -> tuple[float, float]:
    """Milliseconds until these words are painted, by the clock and of a core, which other programs change less."""
    terminal = Terminal(*command)
    wall = terminal.first_paint(words)
    return wall * 1e3, terminal.end() * 1e3


def starts(folder: Path) -> dict[str, list[float]]:
    """Milliseconds of each kind of start, in turns: until an empty home's advice is painted, and the last run's name
    and loss in a home of many runs."""
    minimal = folder / "minimal.py"
    minimal.write_text(MINIMAL)
    empty, many = (Home(folder / name).create() for name in ("empty", "many"))
    make_finished_runs(many, RUNS, STEPS)
    engines = [Engine(home) for home in (empty, many)]
    last = newest(engines[1])
    rounds = defaultdict(list)
    try:
        for _ in range(STARTS + 1):
            rounds["python"].append(milliseconds(sys.executable, "-c", "pass"))
            rounds["help"].append(milliseconds(COCKPIT, "--help"))
            for name, words, command in (
                ("minimal", ("Hello",), (sys.executable, str(minimal))),
                ("empty", (ADVICE,), (COCKPIT, "--home", str(empty.root))),
                (
                    "many",
                    (last.name, f"loss {format_number(last.metrics['train/loss'])}"),
                    (COCKPIT, "--home", str(many.root)),
                ),
            ):
                wall, core = first_paint(words, *command)
                rounds[name].append(wall)
                rounds[f"{name} cpu"].append(core)
    finally:
        for engine in engines:
            end(engine)
    return {name: values[1:] for name, values in rounds.items()}


def newest(engine: Engine) -> Run:
    """The newest run, once the engine has read all of them."""
    while True:
        runs: list[Run] = engine.client.request("runs", ListRuns(), timeout=120.0).runs
        if len(runs) == RUNS and all(run.step and run.metrics for run in runs):
            return max(runs, key=lambda run: run.created)
        time.sleep(0.5)


def end(engine: Engine) -> None:
    engine.client.request("shutdown", Shutdown(force=True))
    engine.client.close()


def rest(terminal: Terminal) -> tuple[float, float]:
    """Percent of a core and bytes/s of an app that nobody touches."""
    process = psutil.Process(terminal.process.pid)
    before, began = process.cpu_times(), time.perf_counter()
    written = len(terminal.read(REST))
    after, seconds = process.cpu_times(), time.perf_counter() - began
    return (after.user + after.system - before.user - before.system) / seconds * 100, written / seconds


def press(terminal: Terminal, key: bytes, wanted: list[str]) -> list[float]:
    """Milliseconds from the key to each of the paints on the slow link, which is drained for a second before and
    after."""
    terminal.read(1.0, rate=SLOW)
    began = time.perf_counter()
    os.write(terminal.master, key)
    found, got = [], b""
    for text in wanted:
        while text not in painted(got):
            got += terminal.read(5.0, text, SLOW)
        found.append((time.perf_counter() - began) * 1e3)
    terminal.read(1.0, rate=SLOW)
    return found


def live(engine: Engine) -> tuple[list[tuple[float, float]], dict[str, list[float]]]:
    """Rests and key presses, in turns, at one app that stays open."""
    terminal = Terminal(COCKPIT, "--home", str(engine.home.root))
    rests, keys = [], defaultdict(list)
    try:
        terminal.read(5.0)
        for _ in range(LIVE_ROUNDS):
            rests.append(rest(terminal))
            for _ in range(PRESSES):
                for name, (key, wanted) in KEYS.items():
                    for text, found in zip(wanted, press(terminal, key, wanted), strict=True):
                        keys[f"{name} → {text.strip('· ')}"].append(found)
    finally:
        terminal.end()
    return rests, keys


def report(rounds: list[float], wanted: str = "") -> dict[str, Any]:
    return {"rounds": rounds, "median": statistics.median(rounds)} | ({"wanted": wanted} if wanted else {})


def compare(started: dict[str, list[float]], home: str) -> dict[str, Any]:
    """The first useful words of a home beside the minimal app's."""
    found = {}
    for unit, kind in (("", ""), ("cpu_", " cpu")):
        ours, theirs = started[f"{home}{kind}"], started[f"minimal{kind}"]
        found[f"{unit}ms"] = report(ours)
        found[f"{unit}ratio"] = report([one / other for one, other in zip(ours, theirs, strict=True)], "≤ 2")
    return found


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    load = [os.getloadavg()[0]]
    started = starts(folder)
    load.append(os.getloadavg()[0])
    engine = Engine(Home(folder / "home").create())
    try:
        engine.wait_step(engine.submit(steps=3000, pace=PACE), 50)
        rests, keys = live(engine)
        load.append(os.getloadavg()[0])
    finally:
        end(engine)
    save(
        "app",
        {
            "load_average": {"before, between, after": load},
            "help_ms": report(started["help"], "≤ 150 ms"),
            "python_pass_ms": report(started["python"]),
            "first_words_minimal": {"ms": report(started["minimal"]), "cpu_ms": report(started["minimal cpu"])},
            "first_words_empty_home": compare(started, "empty"),
            f"first_words_{RUNS}_runs": compare(started, "many"),
            "rest_percent_of_a_core": report([percent for percent, _ in rests], "≤ 5 %"),
            "rest_bytes_per_second": report([written for _, written in rests], "≤ 10000"),
            "key_to_paint_at_50_kB_s_ms": {name: report(found, "≤ 300 ms") for name, found in keys.items()},
        },
    )
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
