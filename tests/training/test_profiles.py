"""Every built-in profile runs: two steps of each on a tiny model of its base's family, with the embedded model's
tokenizer."""

from __future__ import annotations

import json
import shutil
from math import log
from pathlib import Path

import pytest

from engine.config.bundled import find_bundled
from engine.config.profile import find, load
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.journal import End, Evaluation
from tests.conftest import TOKENS

LLAMA, QWEN = "LlamaConfig", "Qwen2Config"
FAMILIES = {
    "dpo": LLAMA,
    "grpo": LLAMA,
    "quick-check": LLAMA,
    "resource-limited": LLAMA,
    "reward": LLAMA,
    "sft-full": LLAMA,
    "sft-lora": LLAMA,
    "thought-graph-qlora": LLAMA,
    "triples-8gpu": QWEN,
    "triples-16gb": QWEN,
    "triples-20gb": QWEN,
    "triples-24gb": QWEN,
}
ELSEWHERE = {
    "triples-qlora": "tests/cli/test_demo.py",
    "thought-graph-pipeline": "tests/cli/test_pipeline.py",
    "triples-pipeline": "tests/cli/test_pipeline.py",
    "pretrain-small": "tests/cli/test_pretrain_profiles.py",
    "pretrain-medium": "tests/cli/test_pretrain_profiles.py",
    "pretrain-continued": "tests/cli/test_pretrain_profiles.py",
    "chatglm3-6b-qlora-8gpu": "tests/cli/test_glm.py",
    "chatglm-6b-qlora-20gb": "tests/cli/test_glm.py",
}
"""Run there, with what they need."""
SHORT = (
    "training.max_steps=2",
    "training.rehearsal=false",
    "training.threads=1",
    "data.max_rows=40",
    "data.validation.0.max_rows=2",
    "evaluation.samples=1",
    "generation.max_new_tokens=2",
    "logging={plots: false, tensorboard: false}",
    "limits={disk_free_gb: 0}",
)


def test_every_profile_is_run_somewhere() -> None:
    names = {path.stem for path in find_bundled("profiles").glob("*.yaml")}
    assert names and names == FAMILIES.keys() | ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        assert name in (Path(__file__).parents[2] / file).read_text(), f"{file} does not run {name}"


def test_drift_is_measured_where_it_costs_little() -> None:
    """Shares of a run, measured on a CPU or computed for a GPU, by `bench.drift`."""
    found = json.loads((Path(__file__).parents[2] / "bench" / "results" / "drift.json").read_text())["results"]
    shares = {
        name: min(share for key, share in costs.items() if key.startswith("percent") and share is not None)
        for part in (found["measured"], found["computed"])
        for name, costs in part.items()
    }
    cheap = {name for name, share in shares.items() if share < 2}
    enabled = {path.stem for path in find_bundled("profiles").glob("*.yaml") if "drift: true" in path.read_text()}
    assert enabled == cheap and cheap != shares.keys()


def family(folder: Path, kind: str, tokenizer: Path) -> Path:
    """A model of two tiny layers of this kind, random weights, with the tokenizer of this folder."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    for file in tokenizer.glob("*.jinja"):
        shutil.copy(file, folder)
    torch.manual_seed(0)
    config = getattr(transformers, kind)(
        vocab_size=len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, light: Path) -> dict[str, Path]:
    return {kind: family(tmp_path_factory.mktemp(kind), kind, light) for kind in (LLAMA, QWEN)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_profile(name: str, families: dict[str, Path], bare_home: Home, start_run) -> None:
    """As written, but for its base, its length in steps, and the cards that this machine has not."""
    changes = [f"model.base={families[FAMILIES[name]]}", *SHORT]
    changes += {"triples-8gpu": ["launch.processes=2"], "grpo": ["method.max_new_tokens=8"]}.get(name, [])
    settings = load(find(name), changes, bare_home)
    prepared = prepare(settings, bare_home, lambda *_: None)
    run = start_run(name, prepared=prepared, profile=settings.to_yaml().replace("{", "{{").replace("}", "}}"))
    run.train(processes=settings.launch.processes)
    (end,) = run.entries(End)
    assert (end.status, end.step) == ("completed", 2)
    if name == "grpo":
        assert sorted(run.series("train/reward")) == [1, 2] and run.entries(Evaluation)[-1].values["eval/reward"] == 0
        return
    losses, last = run.series("train/loss"), run.entries(Evaluation)[-1].values
    if name in ("reward", "dpo"):
        assert sorted(losses) == [1, 2] and last["eval/accuracy" if name == "reward" else "eval/rewards_accuracy"] >= 0
        return
    least, most = log(TOKENS) - 1.5, log(TOKENS) + 1.7
    assert sorted(losses) == [1, 2] and all(least < loss < most for loss in losses.values()), losses
    assert least < last["eval/loss"] < most
