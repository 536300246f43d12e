"""Merges of adapters and of models, against the same sums in plain torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.export.combine import Recipe, combine, list_last
from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.storage import manifest
from tests.training.harness import make_model

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path, dict[str, Path]]:
    """A base, LoRAs of several kinds on it, and their merged weights."""
    folder = tmp_path_factory.mktemp("combine")
    base = make_model(folder / "base")
    adapters = {
        "a": LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        "b": LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        "ranks": LoraConfig(
            r=2, rank_pattern={"q_proj": 6}, target_modules=["q_proj", "v_proj"], use_rslora=True, task_type="CAUSAL_LM"
        ),
        "dora": LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"),
    }
    for seed, (name, config) in enumerate(adapters.items()):
        torch.manual_seed(seed)
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for parameter in made.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        made.save_pretrained(folder / name)
    for name, change in (("first", {"layers_to_transform": [0]}), ("pissa", {"init_lora_weights": "pissa"})):
        shutil.copytree(folder / "b", folder / name)
        config = json.loads((folder / name / "adapter_config.json").read_text())
        (folder / name / "adapter_config.json").write_text(json.dumps(config | change))
        adapters[name] = adapters["b"]
    return Home(folder / "home").create(), base, {name: folder / name for name in adapters}


def weights(base: Path, adapter: Path | None = None) -> Weights:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(scene: Any, out: Path, recipe: Recipe, *chosen: Path, base: Path | None = None) -> str:
    home = scene[0]
    found = [targets.resolve(str(each), home, Path("/")) for each in chosen]
    return combine(found, out, recipe, targets.resolve(str(base), home, Path("/")) if base else None, home)


@pytest.mark.parametrize(("names", "given"), [(("a", "b"), (0.7, -0.2)), (("a", "ranks", "b"), ())])
def test_the_linear_merge_of_adapters_is_the_sum_of_their_changes(
    scene: Any, tmp_path: Path, names: tuple[str, ...], given: tuple[float, ...]
) -> None:
    _, base, adapters = scene
    assert run(scene, tmp_path / "out", Recipe(weights=given), *(adapters[name] for name in names)) == "adapter"
    plain, made = weights(base), weights(base, tmp_path / "out")
    parts = [weights(base, adapters[name]) for name in names]
    for name, start in plain.items():
        share = given or [1 / len(names)] * len(names)
        wanted = start + sum(w * (part[name] - start) for w, part in zip(share, parts, strict=True))
        torch.testing.assert_close(made[name], wanted, rtol=1e-4, atol=1e-5)
    assert not torch.equal(
        made["model.layers.0.self_attn.q_proj.weight"], plain["model.layers.0.self_attn.q_proj.weight"]
    )


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_sparse_merges_of_adapters_are_pefts(scene: Any, tmp_path: Path, method: str) -> None:
    _, base, adapters = scene
    recipe = Recipe(method, (1.0, 0.5), density=0.4, seed=3)
    run(scene, tmp_path / "out", recipe, adapters["a"], adapters["b"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters["a"], adapter_name="a")
    model.load_adapter(adapters["b"], adapter_name="b")
    torch.manual_seed(3)
    model.add_weighted_adapter(["a", "b"], [1.0, 0.5], "x", combination_type=method, density=0.4)
    model.set_adapter("x")
    ids = torch.tensor([[5, 6, 7]])
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "task", "ties", "dare_linear", "dare_ties"])
def test_whole_models_are_combined_tensor_by_tensor(scene: Any, tmp_path: Path, method: str) -> None:
    _, base, adapters = scene
    wholes = []
    for name in ("a", "b"):
        whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[name]).merge_and_unload()
        whole.save_pretrained(tmp_path / name)
        wholes.append(tmp_path / name)
    origin = base if method != "linear" else None
    given = (0.25, 0.75) if method != "task" else (1.0, 0.5)
    recipe = Recipe("linear" if method == "task" else method, given, 0.5, 7)
    manifest.write(wholes[0])  # as a checkpoint has one, of its own files
    assert run(scene, tmp_path / "out", recipe, *wholes, base=origin) == "model"
    assert not (tmp_path / "out/manifest.json").exists()
    made, one, two, start = (load_file(path / "model.safetensors") for path in (tmp_path / "out", *wholes, base))
    torch.manual_seed(7)
    for name in sorted(one):
        if method == "linear":
            wanted = 0.25 * one[name] + 0.75 * two[name]
        elif method == "task":
            wanted = start[name] + (one[name] - start[name]) + 0.5 * (two[name] - start[name])
        else:
            changes = [one[name] - start[name], two[name] - start[name]]
            mixed = getattr(merge_utils, method)(changes, torch.tensor([0.25, 0.75]), density=0.5)
            wanted = start[name] + torch.nan_to_num(mixed)
        torch.testing.assert_close(made[name], wanted)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_what_cannot_be_merged_is_refused(scene: Any, tmp_path: Path) -> None:
    _, base, adapters = scene
    other = make_model(tmp_path / "other")
    found = load_file(other / "model.safetensors")
    found["lm_head.weight"] = found["lm_head.weight"][:-1].clone()
    save_file(found, other / "model.safetensors", metadata={"format": "pt"})
    cases: list[tuple[Recipe, tuple[Path, ...], str]] = [
        (Recipe(), (adapters["a"],), "at least two"),
        (Recipe(weights=(1.0,)), (adapters["a"], adapters["b"]), "1 weights for 2"),
        (Recipe("slerp"), (adapters["a"], adapters["b"]), "the method is one of"),
        (Recipe(density=0.0), (adapters["a"], adapters["b"]), "density"),
        (Recipe(), (adapters["a"], adapters["dora"]), "use_dora"),
        (Recipe(), (adapters["a"], base), "some are adapters"),
        (Recipe("ties"), (base, base), "needs --base"),
        (Recipe(weights=(1.0, 1.0)), (base, base), "add up to 1, not 2"),
        (Recipe(weights=(float("nan"), 1.0)), (adapters["a"], adapters["b"]), "finite"),
        (Recipe(), (adapters["a"], adapters["first"]), "layers_to_transform"),
        (Recipe(), (adapters["a"], adapters["pissa"]), "init_lora_weights pissa"),
        (Recipe(), (base, other), "different shapes: lm_head"),
    ]
    for recipe, chosen, why in cases:
        with pytest.raises(ProblemError) as caught:
            run(scene, tmp_path / "out", recipe, *chosen)
        assert why in f"{caught.value.problem.title} {caught.value.problem.cause}"
        assert not (tmp_path / "out").exists()
    with pytest.raises(ProblemError):
        list_last("nothing", 2, scene[0])


@pytest.mark.slow
def test_the_verb(scene: Any, tmp_path: Path) -> None:
    home, _, adapters = scene
    output = ["--out", tmp_path / "out", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cockpit.cli", "merge", adapters["a"], adapters["b"], "--weights=1,-0.5", *output],
        env=os.environ | {"COCKPIT_HOME": str(home.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "adapter" and (tmp_path / "out/adapter_config.json").is_file()
