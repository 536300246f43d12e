"""What the cleaner lists and removes is what nothing needs; it refuses everything else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cockpit.cli import main
from engine.protocol import states
from engine.protocol.messages import CleanQuery, CleanReply, Label, ProblemError, Resume, Stop
from tests.scripted.bench import Engine

OLD = time.time() - 3 * 24 * 3600


def fill(folder: Path, size: int = 1000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(bytes(size))
    for path in (folder / "weights", folder):
        os.utime(path, (OLD, OLD))
    return folder


def ask(engine: Engine, **query: object) -> CleanReply:
    reply: CleanReply = engine.client.request("clean", CleanQuery(**query))  # type: ignore[arg-type]
    return reply


def test_only_what_nothing_needs_is_removed(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    home = engine.home
    done, stopped = engine.submit(steps=3), engine.submit(steps=5000, pace=0.002)
    engine.wait(done, states.COMPLETED)
    engine.wait_step(stopped, 3)
    engine.client.request("stop", Stop(run=stopped.id))
    engine.wait(stopped, states.STOPPED)
    for step in (1, 2, 3):
        fill(home.run(done.id).checkpoint(step))
    for step in (1, 2):
        fill(home.run(stopped.id).checkpoint(step))
    named, unused, fresh = (fill(home.cache / (letter * 32)) for letter in "abc")
    inner = fill(home.cache / ("d" * 32))
    (named / "prepared.json").write_text(json.dumps({"made_of": inner.name}))
    os.utime(fresh / "weights")
    prepared = home.run(stopped.id).prepared
    prepared.write_text(json.dumps({"folder": str(named)}))
    expensive = fill(home.cache / f"expand-{'e' * 32}")
    gone = fill(home.runs / ".deleted-x")
    (home.root / "profiles").mkdir()
    (home.root / "profiles" / "next.yaml").write_text(f"model: {{base: {done.id}@2}}\n")
    listed = {Path(item.path): item for item in ask(engine).items}
    safe = {path for path, item in listed.items() if item.safe}
    assert safe == {home.run(done.id).checkpoint(1), unused, gone}
    assert {path.name for path in set(listed) - safe if path.parent == home.cache} == {fresh.name}
    newest = home.run(stopped.id).checkpoint(home.run(stopped.id).checkpoint_steps()[-1])
    assert not listed[newest].safe and "a resume goes on" in listed[newest].why
    for refused in (named, expensive, newest, home.run(done.id).checkpoint(3), home.runs, Path("/etc")):
        with pytest.raises(ProblemError) as raised:
            ask(engine, remove=[str(unused), str(refused)])
        assert raised.value.problem.code == "clean.refused" and refused.exists() and unused.exists()
    engine.client.request("label", Label(run=done.id, pinned=True))
    assert home.run(done.id).checkpoint(1) not in {Path(item.path) for item in ask(engine).items}
    engine.client.request("label", Label(run=done.id, pinned=False))
    assert main(["--home", str(home.root), "--json", "clean"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [] and unused.exists()
    assert main(["--home", str(home.root), "--json", "clean", "--yes"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(item["path"]) for item in told["removed"]} == safe and told["bytes"] >= 3000
    assert not any(path.exists() for path in safe) and inner.exists() and fresh.exists() and expensive.exists()
    assert not list(home.run(done.id).checkpoints.glob(".removed*"))
    resumed = engine.client.request(
        "resume", Resume(run=stopped.id, changes={"training.max_steps": stopped.step + 5000})
    )
    assert engine.wait(resumed, states.RUNNING).attempt == 2
    assert not [item for item in ask(engine).items if item.run == stopped.id], "it is running again"
