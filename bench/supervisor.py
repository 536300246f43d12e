"""Speed of the supervisor: the round trip of a command, events a second received and stored, a million points on
attaching.

python -m bench.supervisor
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from bench.report import save
from engine.protocol.client import Client
from engine.protocol.home import Home
from engine.protocol.messages import Run, SeriesQuery, Shutdown
from tests.scripted.bench import Engine

ROUNDS = 5
POINTS = 2000
NAMES = ["train/loss", "train/learning_rate", "train/grad_norm"]


def round_trips(engine: Engine, count: int = 3000) -> dict[str, float]:
    """Milliseconds of an empty command."""
    seconds = []
    with Client(engine.home) as client:
        for _ in range(count):
            began = time.perf_counter()
            client.request("hello")
            seconds.append(time.perf_counter() - began)
            time.sleep(0.0005)
    seconds.sort()
    return {"p50_ms": seconds[count // 2] * 1e3, "p99_ms": seconds[count * 99 // 100] * 1e3}


def ingest(engine: Engine, events: int) -> tuple[float, Run]:
    """Events a second from the worker's first line until the last one can be read back from the registry."""
    run = engine.submit(steps=events)
    journal = engine.home.run(run.id).events
    while not journal.exists():
        time.sleep(0.001)
    began = time.perf_counter()
    query = SeriesQuery(run=run.id, names=["train/loss"], points=1, first=events)
    while engine.client.request("series", query).series[0].total == 0:
        time.sleep(0.01)
    return events / (time.perf_counter() - began), run


def attach(home: Home, run: Run) -> float:
    """Milliseconds from nothing to a connected client with a snapshot and three reduced curves."""
    began = time.perf_counter()
    with Client(home, start=False) as client:
        client.request("attach")
        reply = client.request("series", SeriesQuery(run=run.id, names=NAMES, points=POINTS))
    seconds = time.perf_counter() - began
    assert reply.series[0].total == 1_000_000, reply.series[0].total
    return seconds * 1e3


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    flood = Engine(Home(folder / "flood").create(), workers="bench.flood")
    rates = [ingest(flood, 100_000)[0] for _ in range(ROUNDS)]
    _, million = ingest(flood, 1_000_000)
    attached = [attach(flood.home, million) for _ in range(ROUNDS)]
    flood.close()
    calm = Engine(Home(folder / "calm").create())
    calm.wait(calm.submit(steps=10**9, pace=0.05), "running")  # a live run beside the commands
    trips = [round_trips(calm) for _ in range(ROUNDS)]
    calm.client.request("shutdown", Shutdown(force=True))
    calm.client.close()
    save(
        "supervisor",
        {
            "events_per_second": {"rounds": rates, "median": statistics.median(rates), "wanted": "≥ 20000"},
            "million_points_attached_ms": {
                "rounds": attached,
                "median": statistics.median(attached),
                "wanted": "≤ 500",
            },
            "round_trip": {
                "p50_ms": statistics.median(trip["p50_ms"] for trip in trips),
                "p99_ms": statistics.median(trip["p99_ms"] for trip in trips),
                "wanted": "p99 ≤ 2 ms",
            },
        },
    )
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
