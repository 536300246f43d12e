"""Wrong answers that were planted in the demo's data are the first rows of `cockpit data worst`."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import parse
from engine.prep.prepare import prepare
from engine.prep.verbs import worst
from engine.protocol.home import Home
from engine.protocol.worker_link import Link

ROWS, PLANTED = 160, 8
PROFILE = """
model: {base: smollm2-135m-instruct, dtype: bfloat16}
adapter: {kind: lora, rank: 16, alpha: 32}
data: {train: [{source: rows.jsonl}], max_length: 256}
method: {kind: sft}
training: {epochs: 1, micro_batch: 8, learning_rate: 1.0e-3, warmup: 2, threads: 1, rehearsal: false}
checkpoint: {every_steps: 1000}
evaluation: {at_start: false}
logging: {tensorboard: false, plots: false}
limits: {disk_free_gb: 0}
"""


def quiet(*_: Any) -> None:
    pass


def plant(path: Path, seed: int) -> set[int]:
    """The demo's first rows, of which every twentieth has another row's answer; returns their lines."""
    source = Path(__file__).parents[2] / "data" / "triples" / "train.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:ROWS]]
    generator = random.Random(seed)
    wrong = generator.sample(range(ROWS), PLANTED)
    answers = [rows[at]["messages"][-1]["content"] for at in wrong]
    for at, answer in zip(wrong, [*answers[1:], answers[0]], strict=True):
        rows[at]["messages"][-1]["content"] = answer
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {at + 1 for at in wrong}


def train(home: Home, folder: Path) -> Any:
    from engine.training import session
    from engine.training.inbox import Inbox
    from engine.training.reporter import Reporter

    profile = parse(PROFILE, "test", folder, (), home)
    run = home.run("run")
    run.path.mkdir(parents=True)
    run.profile.write_text(profile.to_yaml())
    (run.path / "job.json").write_text(json.dumps({"kind": "train", "directory": str(folder)}))
    run.prepared.write_text(json.dumps(prepare(profile, home, quiet)))
    link, inbox = Link(f"ipc://{run.path}/nobody", run.id, 1), Inbox()
    inbox.connect(link)
    try:
        session.train(run, 1, profile, folder, None, Reporter(run, 1, link, 0), inbox)
    finally:
        link.close()
    return run


@pytest.mark.slow
def test_planted_errors_come_first_and_are_dropped(home: Home, tmp_path: Path) -> None:
    planted = plant(tmp_path / "rows.jsonl", 1)
    train(home, tmp_path)
    given = {"run": "run", "by": "error", "top": PLANTED, "drop": str(tmp_path / "list.jsonl"), "only": None, "weight": 0.0}
    report = worst.run(home, argparse.Namespace(**given), quiet)
    assert {row["file"] for row in report["worst"]} == {str(tmp_path / "rows.jsonl")}
    found = {row["line"] for row in report["worst"]}
    assert len(found & planted) >= 0.8 * PLANTED, (sorted(found), sorted(planted))
    assert str(tmp_path / "rows.jsonl") in worst.describe(report)

    # What is dropped is not prepared again, wherever the rows stand by then.
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(reversed(lines)))
    profile = parse(PROFILE, "test", tmp_path, ("data.exclude=list.jsonl",), home)
    prepared = prepare(profile, home, quiet)
    assert prepared["rows"] == ROWS - PLANTED
    stage = next(stage for stage in prepared["stages"] if stage["name"] == "exclude")
    assert (stage["in"], stage["listed"], stage["dropped"]) == (ROWS, PLANTED, PLANTED)
