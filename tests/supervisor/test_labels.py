"""Tags, notes and pins are kept beside the run; how earlier attempts ended is kept; and what verbs make of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.cli import main
from engine.config.profile import load
from engine.protocol import states
from engine.protocol.home import RunDirectory
from engine.protocol.messages import Label, ProblemError, Resume, Run
from engine.supervisor import labels
from tests.scripted.bench import Engine


def run_verb(engine: Engine, capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    assert main(["--home", str(engine.home.root), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_labels_outlive_the_engine_and_damage_costs_only_them(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    run = engine.submit("training.learning_rate=2e-4", steps=2, pace=2e-4)
    engine.wait(run, states.COMPLETED)
    assert run_verb(engine, capsys, "tag", run.id, "paper", "论文", "draft") == {
        "run": run.id,
        "tags": ["paper", "论文", "draft"],
        "note": "",
        "pinned": False,
    }
    run_verb(engine, capsys, "tag", run.id, "--remove", "draft")
    run_verb(engine, capsys, "note", run.id, "better than last week's\nas said")
    run_verb(engine, capsys, "pin", run.id)
    for bad in ("two words", "a,b", "", "\x1b[31m", "x" * 41):
        with pytest.raises(ProblemError) as raised:
            engine.client.request("label", Label(run=run.id, add=["good", bad]))
        assert raised.value.problem.code == "request.invalid", bad
    engine.kill()
    engine.restart()
    kept = engine.show(run).run
    assert (kept.tags, kept.note, kept.pinned) == (["paper", "论文"], "better than last week's\nas said", True)
    assert kept.state == states.COMPLETED and kept.learning_rate == 2e-4
    for words, found in (
        (["tag:paper", "state:completed"], True),
        (["lr:>1e-4", "tag:论文"], True),
        (["tag:draft"], False),
    ):
        assert bool(run_verb(engine, capsys, "runs", *words)) == found, words
    assert main(["--home", str(engine.home.root), "runs", "stat:failed"]) == 2
    assert "no field stat, did you mean state?" in capsys.readouterr().err
    run_verb(engine, capsys, "pin", run.id, "--off")
    assert run_verb(engine, capsys, "note", run.id)["note"] == kept.note  # type: ignore[index]
    engine.kill()
    for damage in (b"[", b'{"tags": 3}', b"\xff"):
        engine.home.run(run.id).labels.write_bytes(damage)
        engine.restart()
        shown = engine.show(run)
        assert shown.run.state == states.COMPLETED and shown.run.tags == [] and shown.run.problem is None
        assert any("labels.json" in warning for warning in shown.warnings)
        engine.kill()
    engine.restart()


def test_a_resume_keeps_how_the_attempt_before_ended_and_goes_as_far_as_asked(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    run = engine.submit("generation.seed=3", steps=5)
    failed = engine.wait(run, states.FAILED)
    assert failed.problem is not None
    engine.client.request("resume", Resume(run=run.id))
    again = engine.wait(run, states.FAILED)
    assert again.attempt == 2
    (before,) = engine.show(run).attempts
    assert (before.attempt, before.state) == (1, states.FAILED)
    assert before.problem is not None and before.problem.title == failed.problem.title
    other = engine.submit(steps=3)
    engine.wait(other, states.COMPLETED)
    assert run_verb(engine, capsys, "resume", other.id, "--more", "2")["step"] == 5  # type: ignore[index]
    assert run_verb(engine, capsys, "resume", other.id, "--steps", "9")["step"] == 9  # type: ignore[index]
    assert (
        run_verb(engine, capsys, "resume", other.id, "--from-step", "5", "--more", "1")["step"] == 6  # type: ignore[index]
    )
    assert main(["--home", str(engine.home.root), "resume", other.id, "--steps", "6"]) == 2
    assert "later" in capsys.readouterr().err
    (engine.home.run(other.id).checkpoint(5) / "weights").write_bytes(bytes(1000))
    shown = run_verb(engine, capsys, "show", other.id)
    assert [end["state"] for end in shown["attempts"]] == ["completed"] * 3  # type: ignore[index]
    assert {each["step"]: each["bytes"] for each in shown["checkpoints"]}[5] >= 1000  # type: ignore[index]


def test_a_fork_is_a_valid_profile_and_replaces_nothing(
    engine: Engine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = engine.submit(steps=2)
    file = tmp_path / "again.yaml"
    assert run_verb(engine, capsys, "fork", run.id, str(file), "--set", "training.learning_rate=5e-5") == {
        "run": run.id,
        "file": str(file),
    }
    made = load(file)
    assert (made.training.learning_rate, made.training.max_steps) == (5e-5, 2)
    assert run.id in file.read_text().splitlines()[0]
    assert main(["--home", str(engine.home.root), "fork", run.id, str(file)]) == 2
    assert load(file).training.learning_rate == 5e-5


def test_labels_of_another_host_and_a_damaged_file_are_not_lost(tmp_path: Path) -> None:
    directory, here, there = RunDirectory(tmp_path), Run(id="a"), Run(id="a")
    labels.change(directory, there, Label(run="a", add=["theirs"], note="of theirs"))
    labels.change(directory, here, Label(run="a", add=["mine"], pinned=True))
    assert labels.load(directory) == labels.Labels(tags=["theirs", "mine"], note="of theirs", pinned=True)
    directory.labels.write_text('{"note": "half')
    labels.change(directory, here, Label(run="a", add=["new"]))
    assert labels.load(directory).tags == here.tags == ["new"]
    assert (tmp_path / "labels.json.damaged").read_text() == '{"note": "half'
