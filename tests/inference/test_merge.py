"""A run as the base of another: its weights stay the same, whatever happens to the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config.profile import Profile, ProfileError, parse, pin
from engine.models import targets
from engine.prep.pin_base import pin_base
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from tests.training.harness import make_model


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def base(home: Home) -> Path:
    """A model in bfloat16, as bases usually are stored."""
    folder = make_model(home.models / "tiny")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, seed: int = 1, stops: tuple[int, ...] = (1, 2)) -> Path:
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "own template {{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    lock = {"base": str(base), "eos_token_ids": list(stops), "dtype": "bfloat16", "quantization": "nf4", "golden": []}
    (folder / "lock.json").write_text(json.dumps(lock))
    return folder


def run_of(home: Home, name: str, step: int) -> Path:
    run = home.run(name)
    run.path.mkdir(parents=True)
    run.profile.write_text("name: x\n")
    run.checkpoint(step).parent.mkdir()
    return run.checkpoint(step)


def profile(home: Home, base: object) -> Profile:
    text = f"model: {{base: {base}}}\ndata: {{train: [{{source: triples/train.jsonl}}], max_length: 64}}"
    return parse(text, "x", home.root, home=home)


def settle(home: Home, base: object) -> tuple[Path, list[str]]:
    told: list[str] = []
    found = pin_base(profile(home, base), home, lambda phase, done, total: told.append(phase))
    return Path(found.model.base), told


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_an_adapter_is_merged_once_into_the_pristine_base(home: Home, base: Path) -> None:
    checkpoint = adapter(run_of(home, "first", 5), base)
    folder, told = settle(home, "first")
    assert folder.parent == home.cache and folder.name.startswith("first@5-") and "merging" in told
    merged, before = tensors(folder), tensors(base)
    weights = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint)
    layer = weights.base_model.model.model.layers[1].mlp.up_proj
    name = "model.layers.1.mlp.up_proj.weight"
    expected = (before[name].float() + layer.get_delta_weight("default").float()).bfloat16()
    assert merged[name].dtype == torch.bfloat16 and torch.equal(merged[name], expected)
    assert not torch.equal(merged[name], before[name])
    assert torch.equal(merged["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert AutoTokenizer.from_pretrained(folder).chat_template.startswith("own template")
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [1, 2]
    target = targets.resolve(str(folder), home, home.root)
    assert target.adapter is None and target.quantization is None and target.lock
    made = {path: path.stat().st_mtime_ns for path in home.cache.rglob("*")}
    again, told = settle(home, "first@5")
    assert again == folder and "merging" not in told
    assert {path: path.stat().st_mtime_ns for path in home.cache.rglob("*")} == made
    adapter(checkpoint, base, seed=2)
    assert settle(home, "first")[0] != folder
    assert settle(home, checkpoint)[0].name.startswith("step-00000005-")
    outside = shutil.copytree(checkpoint, home.root.parent / "outside")
    assert settle(home, outside)[0].name.startswith("outside-")


def test_a_whole_checkpoint_is_kept_when_its_run_goes(home: Home, base: Path) -> None:
    checkpoint = run_of(home, "whole", 7)
    shutil.copytree(base, checkpoint)
    (checkpoint / "trainer").mkdir()
    (checkpoint / "trainer" / "optimizer.pt").write_bytes(bytes(100))
    folder, told = settle(home, "whole@7")
    assert "merging" not in told and not (folder / "trainer").exists()
    assert (folder / "model.safetensors").samefile(checkpoint / "model.safetensors")  # linked: it takes no room
    weights = tensors(folder)
    shutil.rmtree(home.run("whole").path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in tensors(folder).items())
    assert settle(home, folder)[0] == folder
    assert Path(settle(home, base)[0]) == base and Path(settle(home, "tiny")[0]) == Path("tiny")


def test_moving_names_are_pinned_when_a_run_is_submitted(home: Home, base: Path) -> None:
    adapter(run_of(home, "first", 5), base)
    for name in ("last", "first", "fir", "first@5"):
        assert pin(profile(home, name), home).model.base == "first@5"
    assert pin(profile(home, "tiny"), home).model.base == "tiny"


def test_a_tokenizer_of_a_run_stays_too(home: Home, base: Path) -> None:
    checkpoint = run_of(home, "whole", 7)
    shutil.copytree(base, checkpoint)
    text = (
        "model: {init: config, size: small, tokenizer: last, base: nothing}\nadapter: {kind: none}\n"
        "data: {train: [{source: triples/train.jsonl}]}"
    )
    named = pin(parse(text, "x", home.root, home=home), home)
    assert (named.model.tokenizer, named.model.base) == ("whole@7", "nothing")
    fixed = pin_base(named, home, lambda *_: None)
    shutil.rmtree(home.run("whole").path)
    assert Path(str(fixed.model.tokenizer)).parent == home.cache and fixed.model.base == "nothing"
    assert len(AutoTokenizer.from_pretrained(fixed.model.tokenizer)) == len(AutoTokenizer.from_pretrained(base))
    assert pin_base(fixed, home, lambda *_: None) == fixed


def test_what_cannot_be_merged_is_refused(home: Home, base: Path) -> None:
    checkpoint = adapter(run_of(home, "first", 5), base)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    (checkpoint / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "PREFIX_TUNING"}))
    with pytest.raises(ProfileError, match="first is a prefix tuning adapter, which cannot be merged"):
        profile(home, "first")
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    (base / "config.json").write_text(
        json.dumps(json.loads((base / "config.json").read_text()) | {"quantization_config": {}})
    )
    with pytest.raises(ProfileError, match="whose stored weights are quantised"):
        profile(home, "first")


def test_a_broken_adapter_leaves_nothing_behind(home: Home, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = adapter(run_of(home, "first", 5), base)
    weights = load_file(checkpoint / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name] = torch.full_like(weights[name], float("inf"))
    save_file(weights, checkpoint / "adapter_model.safetensors")
    with pytest.raises(ProblemError, match="not finite"):
        settle(home, "first")
    assert list(home.cache.iterdir()) == []
