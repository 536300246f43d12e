"""Benchmarks every so many steps: the numbers of the checkpoints, and a run that does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.evaluation import run as examine
from engine.evaluation.request import EvaluationRequest
from engine.models import tokenizers
from engine.models.template_lock import hash_template
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Warn
from tests.evaluation.benchmark_files import CHOICES, HARNESS, QUESTIONS
from tests.training.harness import prepare
from tests.training.in_process import entries, series, train

pytestmark = pytest.mark.skipif(not HARNESS.is_dir(), reason="lm-evaluation-harness is not installed: make test does")

SETTINGS = ("training.max_steps=6", "adapter.dropout=0.2", "checkpoint.every_steps=3")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(HARNESS))
    rows = [{"question": text, "choices": choices, "answer": answer} for text, choices, answer in QUESTIONS]
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    words = {"Paris": "w3 w9", "four": "w7", "cold": "w11 w2 w5"}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for word, other in words.items():
        text = text.replace(word, other)
    (folder / "choices.jsonl").write_text(text)
    (folder / "capitals.yaml").write_text(CHOICES)
    return folder


def test_every_so_many_steps(tiny: Path, folder: Path, tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "prepared", tiny)
    prepared["lock"]["template_sha256"] = hash_template(tokenizers.load(tiny))
    section = "evaluation={every_steps: 100, at_start: false, benchmarks: {names: [capitals], every_steps: 3, "
    with_benchmarks = f"{section}rows: 5, folder: {folder}}}}}"
    measured = train(Home(tmp_path), "measured", prepared, *SETTINGS, with_benchmarks)
    plain = train(Home(tmp_path), "plain", prepared, *SETTINGS)
    assert series(measured, "train/loss") == series(plain, "train/loss"), "dropout draws what it would have drawn"
    found = {entry.step: entry.values for entry in entries(measured, Evaluation)}
    assert list(found) == [3, 6] and all("eval/loss" in values for values in found.values())

    class Models:
        def language_model(self, target: Any, dtype: str | None, quantization: str | None) -> Any:
            from engine.inference.loaded_model import load

            return load(target, home=Home(tmp_path), dtype="float32")

    class Watch:
        def __call__(self, *_: Any) -> None: ...

        def is_cancelled(self) -> bool:
            return False

    request = EvaluationRequest(benchmarks=["capitals"], benchmark_folder=str(folder), rows=5, out=str(tmp_path / "o"))
    checkpoint = str(measured.checkpoint(6))
    there = examine.evaluate(checkpoint, request, Home(tmp_path), tmp_path, Models(), Watch())["metrics"]  # type: ignore[arg-type]
    assert there and {name: found[6][name] for name in there} == pytest.approx(there, abs=1e-4)

    broken = with_benchmarks.replace("[capitals]", "[nowhere]")
    survived = train(Home(tmp_path), "survived", prepared, *SETTINGS, broken)
    assert [entry.code for entry in entries(survived, Warn) if "benchmark" in entry.code] == [
        "evaluation.benchmark_failed"
    ]
    assert survived.checkpoint_steps()[-1] == 6
