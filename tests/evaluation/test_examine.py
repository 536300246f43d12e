"""Evaluations of a real run: the values of its own training, every reply stored, continued after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.evaluation import history
from engine.evaluation import run as examine
from engine.evaluation.request import EvaluationRequest
from engine.protocol.home import Home, RunDirectory
from engine.protocol.journal import Evaluation, Sample, read
from engine.protocol.messages import ProblemError
from engine.workers.evaluate import Models

Trained = tuple[Home, RunDirectory]


class Watch:
    """Hears what is done; is killed after `limit` replies."""

    target = ""

    def __init__(self, limit: int | None = None) -> None:
        self.heard: list[tuple[str, int, int]] = []
        self.limit = limit

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.heard.append((stage, done, total))
        if stage == "replies" and done == self.limit:
            raise InterruptedError

    def is_cancelled(self) -> bool:
        return False

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(stage for stage, _, _ in self.heard))


def evaluate(home: Home, target: str, watch: Watch | None = None, **settings: Any) -> dict[str, Any]:
    watch = watch or Watch()
    return examine.evaluate(target, EvaluationRequest(**settings), home, Path("/"), Models(home, watch), watch)  # type: ignore[arg-type]


def journaled(run: RunDirectory) -> dict[int, dict[str, float | None]]:
    return {entry.step: entry.values for entry, _ in read(run.events) if isinstance(entry, Evaluation)}


def lines(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "replies.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_runs_own_evaluation_is_measured_again_to_the_same_values(trained: Trained) -> None:
    home, run = trained
    told = journaled(run)
    for step in (2, 4):
        result = evaluate(home, f"{run.id}@{step}", samples=3)
        assert result["metrics"]["loss"] == pytest.approx(told[step]["eval/loss"], rel=1e-5)
        assert result["metrics"]["token_accuracy"] == pytest.approx(told[step]["eval/token_accuracy"], rel=1e-6)
        for name in ("json_validity", "schema_validity", "unique_ids", "arguments_per_graph"):
            assert result["metrics"][name] == told[step][f"eval/{name}"]
        assert result["task"] == "thought_graph", "as the profile says"
        assert [each["text"] for each in result["thresholds"]] and result["passed"]
    assert told[2]["eval/loss"] != told[4]["eval/loss"]


@pytest.mark.slow
def test_training_keeps_its_replies_as_an_evaluation_does(trained: Trained) -> None:
    _, run = trained
    listed = history.list_evaluations(run)
    training = [each for each in listed if each["origin"] == "training"]
    assert [each["step"] for each in training] == [2, 4]
    assert [each["replies"] for each in training] == [3, 3]
    assert training[0]["metrics"]["loss"] == journaled(run)[2]["eval/loss"]
    assert [each["threshold"] for each in training[0]["thresholds"]] == ["loss < 100", "json_validity >= 0"]
    page = history.page_replies(Path(training[1]["directory"]), 0, 10, None, None)
    samples = [entry for entry, _ in read(run.events) if isinstance(entry, Sample) and entry.step == 4]
    assert {each["reply"] for each in page["replies"]} == {sample.reply for sample in samples if not sample.probe}
    assert [sample.prompt for sample in samples if sample.probe] == ["What is a question?"]
    assert page["by"] == "schema_validity" and "json_validity" in page["scores"]
    compared = history.compare_folders(Path(training[0]["directory"]), Path(training[1]["directory"]))
    assert compared["compared_rows"] == 3 and "schema_validity" in compared["differences"]


@pytest.mark.slow
def test_a_second_call_continues_after_a_kill(trained: Trained, tmp_path: Path) -> None:
    home, run = trained
    settings = {"data": "samples/thought_graph.jsonl", "task": "thought_graph", "rows": 20, "samples": 4}
    settings |= {"max_new_tokens": 8, "out": str(tmp_path / "kept")}
    with pytest.raises(InterruptedError):
        evaluate(home, run.id, Watch(limit=2), **settings)
    kept = lines(str(tmp_path / "kept"))
    assert len(kept) == 2 and json.loads((tmp_path / "kept" / "evaluation.json").read_text())["state"] == "going"
    with (tmp_path / "kept" / "replies.jsonl").open("a") as file:
        file.write('{"row": 3, "torn')  # as a kill in the middle of a line leaves it
    watch = Watch()
    result = evaluate(home, run.id, watch, **settings)
    rows = [entry["row"] for entry in lines(result["directory"])]
    assert rows == sorted(rows) and len(set(rows)) == result["replies"] == 4
    assert "losses" not in watch.stages, "they were all there"
    asked = max(total for stage, _, total in watch.heard if stage == "replies")
    assert asked == 4 - len(kept)
    again = Watch()
    assert evaluate(home, run.id, again, **settings)["metrics"] == result["metrics"]
    assert again.stages == ["reading", "scoring"], "no model is loaded for what is there"
    for entry in lines(result["directory"]):
        assert entry["scores"]["json_validity"] in (0, 1) and "rouge_l" in entry["scores"] and entry["passed"] is False
        assert entry["tokens"] <= 8 and isinstance(entry["stopped"], bool) and entry["seconds"] > 0
    with pytest.raises(ValueError, match=r"holds an evaluation with other .*max_new_tokens"):
        evaluate(home, run.id, **settings | {"max_new_tokens": 9})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "graphs"}, "there is no task 'graphs'"),
        ({"thresholds": ["high"]}, "'high' is not a threshold"),
        ({"constrained": True, "data": "samples/text.jsonl"}, "name the task"),
        ({"data": "samples/nothing.jsonl"}, r"samples/nothing\.jsonl cannot be read"),
        (
            {"data": "samples/text.jsonl", "task": "triples", "samples": 2, "judge": {"temprature": 1}},
            r"judge\.temprature",
        ),
        ({"judge": {"rubric": {"a b": "?"}}}, r"judge\.rubric: .*is not a valid name of a criterion"),
        ({"data": "samples/preference.jsonl", "task": "triples"}, "reference of row 1 is not a JSON list of triples"),
    ],
)
def test_impossible_requests_are_refused_by_name(trained: Trained, settings: dict[str, Any], words: str) -> None:
    home, run = trained
    with pytest.raises((ValueError, ProblemError), match=words):
        evaluate(home, run.id, **settings)


@pytest.mark.slow
def test_a_model_without_rows_of_its_own_needs_some(trained: Trained, tiny: Path) -> None:
    home, _ = trained
    with pytest.raises(ProblemError, match="There is nothing to evaluate"):
        evaluate(home, str(tiny))


@pytest.mark.slow
def test_plain_text_is_measured_whole_and_wrapped_in_a_tasks_prompt(trained: Trained, tiny: Path) -> None:
    home, _ = trained
    settings: dict[str, Any] = {"data": "samples/text.jsonl", "rows": 3, "max_new_tokens": 4}
    plain = evaluate(home, str(tiny), **settings)
    assert plain["metrics"].keys() == {"loss", "perplexity", "token_accuracy"}, "nothing can be asked of it"
    asked = evaluate(home, str(tiny), task="triples", **settings)
    assert "json_validity" in asked["metrics"] and "triples_f1" not in asked["metrics"], "there is no reference"
    assert lines(asked["directory"])[0]["asked"][-1]["content"].startswith("Extract the triples: ")
    assert asked["metrics"]["loss"] == pytest.approx(plain["metrics"]["loss"])


@pytest.mark.slow
def test_a_model_without_a_template_continues_the_text_and_notes_it(
    trained: Trained, tiny: Path, tmp_path: Path
) -> None:
    home, _ = trained
    bare = shutil.copytree(tiny, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    told = json.loads((bare / "tokenizer_config.json").read_text())
    told.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(told))
    found = evaluate(home, str(bare), data="samples/messages.jsonl", rows=2, max_new_tokens=3)
    assert "loss" not in found["metrics"] and found["replies"] == 2 and "rouge_l" in found["metrics"]
    assert any("no chat template" in note for note in found["notes"])
    assert any("loss was not measured" in note for note in found["notes"])


@pytest.mark.slow
def test_replies_can_be_constrained_to_the_tasks_schema(bare_home: Home, smollm2: Path) -> None:
    settings: dict[str, Any] = {"data": "triples/test.jsonl", "task": "triples", "rows": 1, "max_new_tokens": 60}
    (free,) = lines(evaluate(bare_home, str(smollm2), **settings)["directory"])
    (held,) = lines(evaluate(bare_home, str(smollm2), constrained=True, **settings)["directory"])
    assert held["reply"].lstrip().startswith("[") and held["reply"] != free["reply"]
    assert held["stopped"] is False or held["scores"]["schema_validity"] == 1
