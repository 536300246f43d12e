"""Seconds until an engine answers in a home with many finished runs: with their index, and before there is one.

    python -m bench.many_runs --runs 2000 --steps 2600

The time begins with the engine's process and ends with the reply to `runs`. Without an index the engine reads journals
and profiles while it has nothing else to do; how long that takes, and what a request waits meanwhile, is measured too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.report import save
from engine.protocol.home import Home
from engine.protocol.messages import ListRuns, RunRef
from tests.scripted.bench import Engine
from tests.scripted.homes import journal_bytes, make_finished_runs

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=2600, help="of each run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder, "home")).create()
        make_finished_runs(home, arguments.runs, arguments.steps)
        results: dict[str, Any] = {
            "runs": arguments.runs,
            "journals_mb": journal_bytes(home) / 1e6,
            "first_start": first_start(home, arguments.runs),
        }
        starts = [start(home, arguments.runs) for _ in range(ROUNDS)]
        results["start_seconds"], results["start_cpu_seconds"] = (list(each) for each in zip(*starts, strict=True))
        results["start_median"] = statistics.median(results["start_seconds"])
        results["start_cpu_median"] = statistics.median(results["start_cpu_seconds"])
        results["load_average"] = psutil.getloadavg()[0]
        results["wanted"] = "≤ 2 s"
        shutil.rmtree(home.sockets, ignore_errors=True)
    save("many_runs", results)


def first_start(home: Home, count: int) -> dict[str, float]:
    """Without an index: seconds to the first reply, to the last run read, and what `show` waits meanwhile."""
    began = time.perf_counter()
    engine = Engine(home)
    try:
        assert len(engine.client.request("runs", ListRuns(), timeout=120.0).runs) == count
        answered = time.perf_counter() - began
        waits: list[float] = []
        while True:
            asked = time.perf_counter()
            detail = engine.client.request("show", RunRef(run=f"many-{len(waits) * 7 % count:05d}"))
            waits.append(time.perf_counter() - asked)
            assert detail.run.step
            found = engine.client.request("runs", ListRuns()).runs
            if all(run.step and run.method for run in found):
                break
            time.sleep(0.5)
        return {
            "reply_seconds": answered,
            "all_read_seconds": time.perf_counter() - began,
            "show_median_seconds": statistics.median(waits),
            "show_longest_seconds": max(waits),
        }
    finally:
        engine.close()


def start(home: Home, count: int) -> tuple[float, float]:
    """Seconds to the reply, and the CPU seconds of the engine's process until then: on a machine that others use, these
    are nearer to the first on an idle one."""
    began = time.perf_counter()
    engine = Engine(home)
    try:
        found = engine.client.request("runs", ListRuns(), timeout=120.0).runs
        seconds = time.perf_counter() - began
        used = psutil.Process(engine.process.pid).cpu_times()
        assert len(found) == count and all(run.step and run.method and run.metrics for run in found)
        return seconds, used.user + used.system
    finally:
        engine.close()


if __name__ == "__main__":
    main()
