"""Homes with many finished runs, without the time that it takes to have them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from engine.config.profile import find, load
from engine.protocol import journal, states
from engine.protocol.home import Home, host_name


def make_finished_runs(home: Home, count: int, steps: int) -> list[str]:
    """Completed runs of `steps` steps each, as an engine leaves them; returns their ids. The registry knows none."""
    profile = load(find("triples-qlora")).to_yaml()
    events = _make_events(steps)
    lifecycle = _make_lifecycle()
    made = []
    began = time.time() - 60.0 * count
    for index in range(count):
        run = home.run(f"many-{index:05d}")
        run.path.mkdir(parents=True)
        run.profile.write_text(profile)
        run.events.write_bytes(events)
        run.lifecycle.write_bytes(lifecycle)
        job = {"kind": "train", "name": run.id, "source": "", "directory": "/", "output": "", "host": host_name()}
        (run.path / "job.json").write_text(json.dumps(job | {"created": began + 60.0 * index}))
        for name in ("prepared.json", "trained.json"):
            (run.path / name).write_text("{}")
        run.checkpoint(steps).mkdir(parents=True)
        made.append(run.id)
    return made


def _make_events(steps: int) -> bytes:
    start = journal.Start(
        attempt=1, max_steps=steps, epochs=1.0, steps_per_epoch=steps, processes=1, global_batch=8, parameters=1000,
        trainable_parameters=10, rows=8 * steps, trained_tokens=100 * steps,
    )  # fmt: skip
    metrics = (
        journal.Metrics(
            attempt=1,
            step=step,
            epoch=step / steps,
            values={"train/loss": 2.0 / step, "train/learning_rate": 1e-4, "train/grad_norm": 0.5},
        )
        for step in range(1, steps + 1)
    )
    saved = journal.Checkpoint(attempt=1, step=steps, path="", metrics={"eval/loss": 1.0}, best=True)
    end = journal.End(attempt=1, step=steps, status="completed")
    return b"".join(journal.encode(entry) + b"\n" for entry in (start, *metrics, saved, end))


def _make_lifecycle() -> bytes:
    passed = [
        journal.State(attempt=1, state=states.QUEUED),
        journal.Launched(attempt=1, pid=2**22 - 1, start_time=1.0, stage="train"),
        journal.State(attempt=1, state=states.RUNNING),
        journal.Exit(attempt=1, pid=2**22 - 1, status=0),
        journal.State(attempt=1, state=states.COMPLETED),
    ]
    return b"".join(journal.encode(entry) + b"\n" for entry in passed)


def journal_bytes(home: Home) -> int:
    return sum(Path(path).stat().st_size for path in home.runs.glob("*/events.jsonl"))
