"""Rows of which some got wrong answers, a run that trains on them, and what `cockpit data worst` says of it.

Tests and `bench/row_ledger.py` share it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
from pathlib import Path
from typing import Any

from engine.config.profile import Profile, parse
from engine.prep.prepare import prepare
from engine.prep.verbs import worst
from engine.protocol.home import Home
from engine.protocol.worker_link import Link


def quiet(*_: Any) -> None:
    pass


def plant(rows: list[Any], path: Path, seed: int) -> set[int]:
    """Write the rows, of which every twentieth has the answer of another one; returns their lines."""
    wrong = random.Random(seed).sample(range(len(rows)), len(rows) // 20)
    answers = [rows[at]["messages"][-1]["content"] for at in wrong]
    for at, answer in zip(wrong, [*answers[1:], answers[0]], strict=True):
        rows[at]["messages"][-1]["content"] = answer
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {at + 1 for at in wrong}


def train_on(home: Home, folder: Path, text: str, *changes: str) -> Profile:
    """A run called `run` of a profile's text, in this process; sources are relative to `folder`."""
    from engine.training import session
    from engine.training.inbox import Inbox
    from engine.training.reporter import Reporter

    profile = parse(text, "test", folder, changes, home)
    run = home.run("run")
    run.path.mkdir(parents=True)
    run.profile.write_text(profile.to_yaml())
    (run.path / "job.json").write_text(json.dumps({"kind": "train", "directory": str(folder)}))
    run.prepared.write_text(json.dumps(prepare(profile, home, quiet)))
    link, inbox = Link(f"ipc://{run.path}/nobody", run.id, 1), Inbox()
    inbox.connect(link)
    with contextlib.closing(link), contextlib.closing(Reporter(run, 1, link, 0)) as reporter:
        session.train(run, 1, profile, folder, None, reporter, inbox)
    return profile


def ask(home: Home, top: int, **options: Any) -> dict[str, Any]:
    given = {"run": "run", "by": "error", "top": top, "drop": None, "only": None, "weight": 0.0, **options}
    return worst.run(home, argparse.Namespace(**given), quiet)
