"""A long watch at the app: twelve simulated hours with eight devices, a thousand runs and a million points.

    python -m bench.soak

A simulated clock gives the app what an engine would publish, as fast as it takes it in: all points and entries, but one
sample of the devices and one change of the run in ten simulated seconds. After each simulated hour the list of runs is
looked at; then memory and the cost of painting a whole frame of the dashboard are measured.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import psutil

from bench.report import save
from engine.protocol.messages import Message, Points, RunChanged, Series, SeriesQuery, SeriesReply, Told
from tests.app.fake import FakeEngine, demo_run, telemetry
from tests.app.screen import run_app

LOOKED_AT = ("runs", "dashboard")
"""Screens that show live data; the last one is where the app stays."""
PAINTS = 5
"""Whole frames that are painted for each measurement; the fastest counts, since other programs use the cores too."""


@dataclass
class Watch:
    """What is simulated. `hours` are cut into `looks` parts, with a measurement after each."""

    hours: float = 12.0
    looks: int = 12
    runs: int = 1000
    points: int = 1_000_000
    devices: int = 8
    every: int = 10
    """Simulated seconds from one publication to the next."""
    entries: int = 5000
    """Entries of the journal besides metrics: ledger, evaluations, samples."""


class SoakEngine(FakeEngine):
    """It reduces a series to the buckets that are asked for, as an engine does, and remembers no requests."""

    async def request(self, operation: str, message: Message | None = None, timeout: float = 30.0) -> Any:
        if isinstance(message, SeriesQuery):
            return SeriesReply(
                run=message.run,
                series=[self._reduce(name, self.runs[message.run].step, message.points) for name in message.names],
            )
        reply = await super().request(operation, message, timeout)
        self.requests.clear()
        return reply

    def _reduce(self, name: str, last: int, points: int) -> Series:
        steps = list(range(1, last + 1, max(1, -(-last // points))))
        values = [2.0 / (1 + at * 1e-4) for at in steps]
        return Series(
            name=name, first_step=steps, last_step=steps, low=values, high=values, last=values, total=len(steps)
        )


async def simulate(watch: Watch) -> list[dict[str, float]]:
    """The figures after each part: `hours`, `points`, `blocks` that Python has allocated, `resident_mb` and
    `frame_ms`."""
    live = demo_run(id="live", name="live", step=0, max_steps=watch.points, created=time.time() + 1)
    others = (
        demo_run(id=f"run-{at:04d}", name=f"run {at}", state="completed", step=50, group=f"sweep-{at % 40}")
        for at in range(watch.runs - 1)
    )
    engine, figures, process = SoakEngine(live, *others, devices=watch.devices), [], psutil.Process()
    rounds = round(watch.hours * 3600 / watch.every)
    pace = max(1, -(-watch.points // rounds))
    async with run_app(engine, (120, 40), selected="live") as pilot:
        app: Any = pilot.app
        clock, step = time.time(), 0
        for look in range(1, watch.looks + 1):
            for turn in range(rounds * (look - 1) // watch.looks, rounds * look // watch.looks):
                now = clock + turn * watch.every
                step = _publish(app, live, now, step, pace, watch)
                if turn % max(1, rounds // watch.entries) == 0:
                    app.take(Told(run="live", entry=_make_entry(now, turn)))
                if turn % 20 == 0:
                    await asyncio.sleep(0)
            for screen in LOOKED_AT:
                await app.action_go(screen)
                await pilot.pause(0.3)
            gc.collect()
            figures.append(
                {
                    "hours": watch.hours * look / watch.looks,
                    "points": step,
                    "blocks": sys.getallocatedblocks(),
                    "resident_mb": process.memory_info().rss / 1e6,
                    "frame_ms": await _paint(pilot),
                }
            )
    return figures


def _publish(app: Any, live: Any, now: float, step: int, pace: int, watch: Watch) -> int:
    """Publish a sample of the devices, the next `pace` steps and the run; returns the last step."""
    sample = telemetry(watch.devices, cpu=50.0 + now % 40)
    sample.time = now
    app.take(sample)
    steps = range(step + 1, step + 1 + pace)
    values = {"train/loss": [(at, 2.0 / (1 + at * 1e-4) + at % 7 * 0.01) for at in steps]}
    values |= {name: [(steps[-1], 0.5)] for name in ("train/learning_rate", "train/grad_norm", "eval/loss")}
    values["clock/time"] = [(steps[-1], now)]
    app.take(Points(run="live", attempt=1, values=values))
    live.step = steps[-1]
    app.take(RunChanged(run=live))
    return steps[-1]


def _make_entry(now: float, step: int) -> dict[str, Any]:
    """An entry of the journal: each kind in turn."""
    head = {"time": now, "attempt": 1, "step": step}
    match step % 3:
        case 0:
            return {"kind": "ledger", "name": "training.learning_rate", "old": 1e-4, "new": 1e-4 + step, **head}
        case 1:
            return {"kind": "evaluation", "values": {"eval/loss": 1.0, "eval/triples_f1": 0.5}, **head}
    return {"kind": "sample", "prompt": "p", "reply": f"r {step}", "reference": "q", "scores": {"f1": 0.5}, **head}


async def _paint(pilot: Any) -> float:
    """Milliseconds of CPU that a whole frame takes."""
    spent = []
    for _ in range(PAINTS):
        for widget in pilot.app.screen.walk_children():
            widget.refresh()
        began = time.process_time()
        pilot.app.screen.refresh(layout=True)
        await pilot.pause()
        spent.append((time.process_time() - began) * 1000)
    return min(spent)


def compare(figures: list[dict[str, float]], name: str) -> float:
    """The last third of the figures over the second one: the first has what grows to its bound."""
    third = len(figures) // 3
    middle, last = figures[third : 2 * third], figures[2 * third :]
    return statistics.median(each[name] for each in last) / statistics.median(each[name] for each in middle)


def main() -> None:
    began = time.process_time()
    figures = asyncio.run(simulate(Watch()))
    growth = {name: compare(figures, name) for name in ("blocks", "resident_mb", "frame_ms")}
    save("soak", {"cpu_seconds": time.process_time() - began, "growth": growth, "hours": figures})


if __name__ == "__main__":
    main()
