from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.verbs.demo import report
from engine.protocol import journal
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Run
from tests.cli.conftest import Cockpit


@pytest.fixture
def learnt(tmp_path: Path) -> RunDirectory:
    """A run that evaluated three times, kept two prompts' replies each time, and was resumed in between."""
    run = RunDirectory(tmp_path / "demo")
    writer = journal.Writer(run.events)
    for attempt, step, loss, f1 in ((1, 0, 2.5, 0.0), (1, 25, 1.0, 0.2), (2, 50, 0.1, 0.75)):
        values = {"eval/loss": loss, "eval/json_validity": f1, "eval/triples_f1": f1, "eval/schema_validity": None}
        writer.write(journal.Evaluation(attempt=attempt, step=step, values=values))
        for prompt in ("Bees make honey.", "Rain falls."):
            reply = f"{prompt} at {step} [/bold]"
            writer.write(journal.Sample(attempt=attempt, step=step, prompt=prompt, reply=reply, reference="[]"))
    return run


def test_the_report_compares_the_first_and_the_last_evaluation(
    learnt: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(id="demo", state="completed", step=50, created=100.0, ended=250.0)
    report(learnt, run, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "run": "demo",
        "state": "completed",
        "before": {"loss": 2.5, "json_validity": 0.0, "schema_validity": None, "triples_f1": 0.0},
        "after": {"loss": 0.1, "json_validity": 0.75, "schema_validity": None, "triples_f1": 0.75},
        "seconds": 150.0,
    }
    report(learnt, run, as_json=False)
    text = capsys.readouterr().out
    assert "Bees make honey. at 0 [/bold]" in text
    assert "Bees make honey. at 50 [/bold]" in text
    assert "Rain falls." not in text, "one prompt is enough"
    assert "cockpit chat demo --task triples" in text
    assert "50 steps in 2:30" in text


def test_a_demo_that_was_stopped_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(RunDirectory(tmp_path / "demo"), Run(id="demo", state="stopped"), as_json=False)
    assert "cockpit resume demo" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_runs_headless_on_the_real_model(cockpit: Cockpit, home: Home) -> None:
    """The profile triples-qlora, a few rows of it."""
    few_rows = ("data.train.0.max_rows=8", "data.validation.0.max_rows=2", "evaluation.samples=2")
    small = (*few_rows, "training.max_steps=2", "training.micro_batch=2", "generation.max_new_tokens=8")
    settings = [part for setting in small for part in ("--set", setting)]
    answer = cockpit("demo", "--headless", "--json", *settings, seconds=240)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["state"] == "completed"
    assert set(document) == {"run", "state", "before", "after", "seconds"}
    for figures in (document["before"], document["after"]):
        assert set(figures) == {"loss", "json_validity", "schema_validity", "triples_f1"}
        assert all(isinstance(value, float) for value in figures.values())
    assert document["before"]["loss"] != document["after"]["loss"]
    said = cockpit(
        "chat",
        document["run"],
        "--task",
        "triples",
        "--prompt",
        "Bees make honey.",
        "--max-new-tokens",
        "4",
        "--json",
        seconds=120,
    )
    assert said.returncode == 0, said.stderr
    assert 0 < json.loads(said.stdout)["tokens"] <= 4
