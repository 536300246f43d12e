"""Benchmarks every so many steps: the numbers of the checkpoints, and a run that does not notice."""

from __future__ import annotations

import json
import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.evaluation import benchmarks
from engine.evaluation import run as examine
from engine.evaluation.request import EvaluationRequest
from engine.models import tokenizers
from engine.models.template_lock import hash_template
from engine.options.evaluation import BenchmarkOptions
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Warn
from engine.training import step_benchmarks
from tests.evaluation.benchmark_files import CHOICES, HARNESS, QUESTIONS
from tests.training.harness import prepare
from tests.training.in_process import entries, series, train

needs_harness = pytest.mark.skipif(
    not HARNESS.is_dir(), reason="lm-evaluation-harness is not installed: make test does"
)

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


class Pair:
    """Two ranks that are threads: `broadcast` as `Ranks` has it, for what is sent in the same order on both."""

    def __init__(self, rank: int, sent: queue.Queue[Any]) -> None:
        self.first, self._sent = rank == 0, sent

    def broadcast(self, value: Any) -> Any:
        if self.first:
            self._sent.put(value)
            return value
        return self._sent.get(timeout=20)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyError("answer"), None])
def test_the_other_ranks_wait_for_whatever_comes(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long benchmark, one that fails, and one for which memory is short."""

    def measure(request: Any, loaded: Any, watch: Any) -> dict[str, float]:
        for done in range(5):
            watch("replies", done, 5)
        if error:
            raise error
        return {"benchmark/x/acc": 0.5}

    monkeypatch.setattr(benchmarks, "measure_model", measure)
    monkeypatch.setattr(benchmarks, "check_request", lambda _: None)
    monkeypatch.setattr(step_benchmarks, "_ALIVE", 0.0)
    sent: queue.Queue[Any] = queue.Queue()
    warned: list[str] = []

    def run(rank: int) -> dict[str, float]:
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=64))
        options = BenchmarkOptions(names=["x"], every_steps=2)
        loop: Any = SimpleNamespace(
            step=2,
            strategy=SimpleNamespace(sharded=False),
            model=SimpleNamespace(config=config),
            reporter=SimpleNamespace(warn=lambda *, message, **_: warned.append(message), set_phase=lambda *_: None),
            job=SimpleNamespace(
                ranks=Pair(rank, sent),
                tokenizer=None,
                profile=SimpleNamespace(evaluation=SimpleNamespace(benchmarks=options), directory=Path()),
            ),
        )
        return step_benchmarks.StepBenchmarks(loop).measure()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, range(2)))
    assert found == [{} if error else {"benchmark/x/acc": 0.5}] * 2
    assert len(warned) == (2 if error else 0) and sent.empty()


@needs_harness
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
