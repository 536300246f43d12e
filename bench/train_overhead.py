"""What journaling, steering and heartbeats cost a training step, compared with the same trainer without them.

A tiny model makes the step so short that the cost shows, in milliseconds a step of wall time and CPU time; these are
then compared with a step of the demo. Both sides run in one process, in turn. The supervisor's own cost is added: its
CPU seconds beside a run that reports at the demo's pace, with an app attached.

    python -m bench.train_overhead --demo-step 4.0
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.report import save
from engine.config.profile import parse
from engine.protocol.home import Home
from engine.protocol.messages import Shutdown
from tests.scripted.bench import Engine
from tests.training.harness import PROFILE, make_model, prepare

STEPS = 300
WATCHED = 30.0
"""Seconds for which the supervisor is watched."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--demo-step", type=float, required=True, help="seconds of one step of the demo on this machine"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), make_model(Path(folder, "tiny")), rows=256)
        rounds = [(_steered(prepared, True), _steered(prepared, False)) for _ in range(arguments.rounds)]
    extra = {
        name: statistics.median((ours[index] - bare[index]) / STEPS * 1e3 for ours, bare in rounds)
        for index, name in enumerate(("wall_ms_a_step", "cpu_ms_a_step"))
    }
    watching = _supervisor_seconds(arguments.demo_step) * 1e3
    cores = len(os.sched_getaffinity(0))
    share = {
        "wall_percent_of_demo_step": extra["wall_ms_a_step"] / arguments.demo_step / 10,
        "cpu_percent_of_demo_step": (extra["cpu_ms_a_step"] + watching) / arguments.demo_step / cores / 10,
    }
    save(
        "train_overhead",
        {"steps": STEPS, "rounds": arguments.rounds, **extra, "supervisor_cpu_ms_a_step": watching, **share},
    )


def _supervisor_seconds(step: float) -> float:
    """CPU seconds of the supervisor for each of a scripted run's steps of `step` seconds, a client listening to all of
    it."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Home(Path(folder, "home")).create())
        try:
            run = engine.submit(steps=1000, pace=step)
            engine.wait_step(run, 1)
            supervisor = psutil.Process(engine.process.pid)
            before = sum(supervisor.cpu_times()[:2])
            deadline = time.monotonic() + WATCHED
            for _ in engine.client.follow():  # telemetry alone comes once a second
                if time.monotonic() > deadline:
                    break
            return (sum(supervisor.cpu_times()[:2]) - before) / WATCHED * step
        finally:
            engine.client.request("shutdown", Shutdown(force=True))
            engine.client.close()


def _steered(prepared: dict[str, Any], told: bool) -> tuple[float, float]:
    """Wall and CPU seconds of STEPS steps; without `told`, the bare loop with nothing between two steps."""
    from engine.protocol.worker_link import Link
    from engine.training import session
    from engine.training.inbox import Inbox
    from engine.training.loop import TrainingLoop
    from engine.training.reporter import Reporter

    begun: list[tuple[float, float]] = []
    ended: list[tuple[float, float]] = []
    begin, end_step = TrainingLoop.begin, TrainingLoop.end_step

    def first(self: TrainingLoop, on_ready: Any) -> None:
        begin(self, on_ready)
        begun.append((time.perf_counter(), time.process_time()))

    def bare(self: TrainingLoop) -> None:
        self.step += 1
        self.checkpointer.mark_step_end()
        stop(self)

    def ours(self: TrainingLoop) -> None:
        end_step(self)
        stop(self)

    def stop(self: TrainingLoop) -> None:
        if self.step == STEPS:
            ended.append((time.perf_counter(), time.process_time()))
            self.control.stopping = True

    with tempfile.TemporaryDirectory() as folder:
        run = Home(Path(folder)).run("bench")
        run.path.mkdir(parents=True)
        run.prepared.write_text(json.dumps({**prepared, "validation": None}))
        text = PROFILE.format(base=prepared["base"])
        changes = [f"training.max_steps={STEPS + 100}", "checkpoint.every_steps=100000", "logging.tensorboard=true"]
        settings = parse(text, "bench", Path("/"), changes)
        link, inbox = Link(f"ipc://{folder}/none", "bench", 1), Inbox()
        inbox.connect(link)
        replaced = {"begin": first, "end_step": ours if told else bare}
        kept = {name: getattr(TrainingLoop, name) for name in replaced}
        finish, session._finish = session._finish, lambda *_: None  # type: ignore[assignment]
        try:
            for name, function in replaced.items():
                setattr(TrainingLoop, name, function)
            session.train(run, 1, settings, Path(folder), None, Reporter(run, 1, link, 0), inbox)
        finally:
            for name, function in kept.items():
                setattr(TrainingLoop, name, function)
            session._finish = finish
            link.close()
    return ended[0][0] - begun[0][0], ended[0][1] - begun[0][1]


if __name__ == "__main__":
    main()
