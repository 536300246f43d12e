"""lm-evaluation-harness against the server finds what an evaluation of the same model finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.evaluation import run
from engine.evaluation.request import EvaluationRequest
from tests.evaluation.benchmark_files import HARNESS
from tests.evaluation.test_benchmarks import Models, Watch
from tests.serving.conftest import Kitchen, Served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HARNESS.is_dir(), reason="lm-evaluation-harness is not installed: make test does"),
]

CHOICES = """\
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


def test_a_benchmark_against_the_server_is_that_of_eval(
    kitchen: Kitchen, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HARNESS))
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    rows = [
        {
            "question": " ".join(f"w{(row + place) % 50}" for place in range(3 + row)),
            "choices": [f"w{row} w{row + 1}", f"w{row + 2}", f"w{row + 5} w3 w4"],
            "answer": row % 3,
        }
        for row in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.yaml").write_text(CHOICES % (tmp_path / "rows.jsonl"))
    inside = run.evaluate(
        str(kitchen.model),
        EvaluationRequest(benchmarks=["words"], benchmark_folder=str(tmp_path)),
        kitchen.home,
        tmp_path,
        Models(kitchen.home),
        Watch(),
    )
    client = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{served.address}/completions",
        tokenizer=str(kitchen.model),
        tokenizer_backend="huggingface",
        max_length=64,
    )
    found: Any = simple_evaluate(
        client,
        tasks=["words"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found["results"]["words"]["acc,none"] == inside["metrics"]["benchmark/words/acc"]
    samples = {each["doc_id"]: each["filtered_resps"] for each in found["samples"]["words"]}
    written = json.loads((Path(inside["directory"]) / "benchmarks.json").read_text())
    assert written["n-samples"]["words"]["effective"] == 6 and len(samples) == 6
    values = [float(value) for row in range(6) for value, _ in samples[row]]
    again: Any = simple_evaluate(
        "hf",
        model_args={"pretrained": str(kitchen.model), "dtype": "float32"},
        device="cpu",
        tasks=["words"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    alone = {each["doc_id"]: each["filtered_resps"] for each in again["samples"]["words"]}
    assert values == pytest.approx([float(value) for row in range(6) for value, _ in alone[row]], abs=1e-4)
