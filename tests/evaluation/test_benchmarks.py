"""Benchmarks: the numbers are those of lm-evaluation-harness's own class for transformers models, and are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.evaluation import history, run
from engine.evaluation.request import EvaluationRequest
from engine.models import targets
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.evaluation.benchmark_files import CHOICES, HARNESS, QUESTIONS, REPLIES, TEXTS

pytestmark = pytest.mark.skipif(not HARNESS.is_dir(), reason="lm-evaluation-harness is not installed: make test does")

NAMES = ["capitals", "completions", "prose"]


@pytest.fixture(autouse=True)
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HARNESS))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three benchmarks, one of each kind of request, on rows beside them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = [{"question": text, "choices": choices, "answer": answer} for text, choices, answer in QUESTIONS]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in zip(NAMES, (CHOICES, REPLIES, TEXTS), strict=True):
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def adapter(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the embedded model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.mul_(0.3)
    adapted.save_pretrained(folder)
    return folder


class Models:
    """Loads in float32, and keeps the last."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> Any:
        from engine.inference.loaded_model import load

        return load(target, home=self.home, dtype="float32", quantization=quantization)

    def reward_model(self, target: Target) -> Any:
        raise NotImplementedError


class Watch:
    """Notes the progress, and is cancelled at a stage."""

    def __init__(self, cancelled_at: str = "") -> None:
        self.stages: list[str] = []
        self._cancelled_at = cancelled_at

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.append(stage)
        if stage == self._cancelled_at:
            raise KeyboardInterrupt

    def is_cancelled(self) -> bool:
        return False


@pytest.fixture
def measure(home: Home, folder: Path) -> Callable[..., dict[str, Any]]:
    def measure(target: str, watch: Watch | None = None, **settings: Any) -> dict[str, Any]:
        wanted: dict[str, Any] = {"benchmarks": NAMES, "benchmark_folder": str(folder)} | settings
        return run.evaluate(target, EvaluationRequest(**wanted), home, folder, Models(home), watch or Watch())

    return measure


def theirs(names: list[str], folder: Path, model: Path, tokenizer: Path, adapter: Path | None = None) -> dict[str, Any]:
    """What the harness's own class finds."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    before = Path.cwd()
    os.chdir(folder)
    try:
        arguments = {"pretrained": str(model), "tokenizer": str(tokenizer), "dtype": "float32", "peft": adapter}
        found = simple_evaluate(
            "hf",
            model_args={name: value and str(value) for name, value in arguments.items() if value},
            tasks=names,
            device="cpu",
            batch_size=1,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )
    finally:
        os.chdir(before)
    assert found
    return dict(found)


def answers(found: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [sample["filtered_resps"] for sample in each] for name, each in found["samples"].items()}


def numbers(given: Any) -> list[Any]:
    return [each for part in given for each in numbers(part)] if isinstance(given, list | tuple) else [given]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "names"), [("plain", NAMES), ("adapter", NAMES[:2]), ("merged", NAMES[:1])])
def test_the_numbers_are_those_of_the_harness(
    kind: str,
    names: list[str],
    home: Home,
    folder: Path,
    smollm2: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval import evaluator

    model, used = smollm2, adapter if kind != "plain" else None
    if kind == "merged":
        from engine.models.merge import merge

        model, used = tmp_path / "merged", None
        model.mkdir()
        merge(targets.resolve(str(adapter), home, folder), model, False, lambda *_: None)
    kept: dict[str, Any] = {}
    real = evaluator.simple_evaluate
    monkeypatch.setattr(evaluator, "simple_evaluate", lambda **given: kept.update(real(**given)) or kept)
    request = EvaluationRequest(benchmarks=names, benchmark_folder=str(folder))
    watch = Watch()
    result = run.evaluate(str(used or model), request, home, folder, Models(home), watch)
    monkeypatch.undo()
    expected = theirs(names, folder, model, smollm2, used)
    ours, others = answers(kept), answers(expected)
    for name in names:
        for mine, other in zip(numbers(ours[name]), numbers(others[name]), strict=True):
            assert mine == (pytest.approx(other, abs=1e-4) if isinstance(other, float) else other), name
    for name, values in expected["results"].items():
        for key, value in values.items():
            if "," in key and isinstance(value, float):
                metric, chosen = key.split(",")
                mine = result["metrics"][f"benchmark/{name}/{metric}" + (f":{chosen}" if chosen != "none" else "")]
                assert mine == pytest.approx(value, rel=1e-4)
    assert list(result["versions"]) == sorted(names) and result["versions"]["capitals"] == 3.0
    assert result["rows"] == 6 * len(names) and "log-likelihoods" in watch.stages


def test_what_was_answered_before_an_interruption_is_not_asked_again(
    measure: Callable[..., dict[str, Any]], smollm2: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(str(smollm2), Watch("replies"), benchmarks=["capitals", "completions"])
    watch = Watch()
    result = measure(str(smollm2), watch, benchmarks=["capitals", "completions"])
    assert "replies" in watch.stages and "log-likelihoods" not in watch.stages
    again = Watch()
    assert measure(str(smollm2), again, benchmarks=["capitals", "completions"])["metrics"] == result["metrics"]
    assert not {"replies", "log-likelihoods"} & {*again.stages}


def test_two_targets_are_compared_row_by_row_with_intervals(
    measure: Callable[..., dict[str, Any]], whole_smollm2: Path, tmp_path: Path
) -> None:
    """One that knows the answers, and one whose output layer has been shuffled."""
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(whole_smollm2, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].roll(1, 0)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    names = ["capitals", "prose"]
    worse, better = (
        measure(str(each), benchmarks=names, thresholds=["benchmark/capitals/acc > 0.9"])
        for each in (broken, whole_smollm2)
    )
    assert better["passed"] and not worse["passed"], (worse["metrics"], better["metrics"])
    found = history.compare_folders(Path(worse["directory"]), Path(better["directory"]))
    accuracy = found["differences"]["benchmark/capitals/acc"]
    assert found["compared_rows"] == 6 and (accuracy["first"], accuracy["second"]) == (
        worse["metrics"]["benchmark/capitals/acc"],
        better["metrics"]["benchmark/capitals/acc"],
    )
    assert accuracy["better"] == 1 and 0 < accuracy["low"] <= accuracy["difference"] <= accuracy["high"]
    assert "benchmark/prose/word_perplexity" not in found["differences"], "it is no mean over rows"
    fewer = measure(str(whole_smollm2), benchmarks=names, rows=2)
    assert fewer["rows"] == 4 and fewer["directory"] != better["directory"]


def test_requests_that_cannot_succeed_are_refused_before_anything_is_loaded(
    measure: Callable[..., dict[str, Any]], smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Models, "language_model", None)
    with pytest.raises(ValueError, match="--task cannot be used with --benchmark"):
        measure(str(smollm2), task="triples")
    with pytest.raises(ValueError, match="--rows must be at least 1"):
        measure(str(smollm2), rows=0)  # which the harness would take for all of them
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProblemError) as caught:
        measure(str(smollm2))
    assert caught.value.problem.code == "package.missing" and "pip install" in caught.value.problem.hint
