"""ChatGLM2, ChatGLM3 and GLM-4 against the outputs of the original code; what is saved is read by plain
transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GlmForCausalLM

from engine.models.glm.generations import recognise, translate_config
from engine.models.loading import load_model
from engine.models.quantization import quantization_config
from tests import plain
from tests.models.glm.layouts import FOURTH, THIRD, golden, rewrite

CLOSE = 1e-5
CASES = [(THIRD, "full"), (THIRD, "pad"), (FOURTH, "full")]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("source", "case"), CASES)
def test_logits_and_greedy_continuations_are_the_originals(source, case, attention):
    model, told = load_model(str(source), dtype=torch.float32, attn_implementation=attention), golden(source)
    assert type(model) is GlmForCausalLM
    ids = told[f"{case}.input_ids"]
    mask = told.get(f"{case}.attention_mask", torch.ones_like(ids))
    given = {"position_ids": told[f"{case}.position_ids"]} if case == "pad" else {}
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, **given).logits
    assert (logits - told[f"{case}.logits"])[mask.bool()].abs().max() < CLOSE
    for cached in (True, False):
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "use_cache": cached}
        reply = model.generate(ids, attention_mask=mask, **settings)
        assert reply[:, ids.shape[1] :].tolist() == told[f"{case}.greedy8"].tolist()
    if f"{case}.loss" in told:
        loss = model(ids, labels=told[f"{case}.labels"]).loss
        assert abs(loss.item() - told[f"{case}.loss"].item()) < 1e-6


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@torch.no_grad()
def test_files_of_every_kind_load_in_every_dtype(tmp_path: Path, binary, shards, dtype):
    folder = rewrite(THIRD, tmp_path, shards=shards, binary=binary, dtype=dtype)
    told = golden(THIRD)
    model = load_model(str(folder), dtype=getattr(torch, dtype))
    assert model.dtype == getattr(torch, dtype)
    rounded = load_model(str(THIRD), dtype=torch.float32)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(model.dtype).float()
    ids = told["full.input_ids"]
    assert model.float()(ids).logits.allclose(rounded(ids).logits, atol=CLOSE)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@torch.no_grad()
def test_quantised_layers_hold_what_plain_transformers_quantises(tmp_path: Path, quantization):
    load_model(str(THIRD), dtype=torch.float32).save_pretrained(tmp_path)
    how = {"dtype": torch.float32, "device_map": {"": "cpu"}}
    ours = load_model(str(THIRD), quantization_config=quantization_config(quantization, "float32"), **how)
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization_config(quantization, "float32"), **how
    )
    weights = dict(plain.state_dict())
    assert "model.layers.0.self_attn.q_proj.weight" in weights
    for name, weight in ours.state_dict().items():
        assert weight.equal(weights[name]), name
    assert ours.model.layers[0].self_attn.q_proj.weight.dtype in (torch.uint8, torch.int8)


PLAIN = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
for folder, golden, place in zip(*[iter(sys.argv[1:])] * 3):
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()) and type(model).__name__ == "GlmForCausalLM"
    with torch.no_grad():
        save_file({"logits": model(load_file(golden)["full.input_ids"]).logits}, place)
"""


def test_what_is_saved_is_read_with_no_code_of_ours(tmp_path: Path):
    from safetensors.torch import load_file

    arguments: list[object] = []
    logits = []
    for source in (THIRD, FOURTH):
        folder = tmp_path / source.name
        model = load_model(str(source), dtype=torch.float32)
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == ("glm", ["GlmForCausalLM"])
        generation = json.loads((folder / "generation_config.json").read_text())
        assert generation["eos_token_id"] == config["eos_token_id"]
        arguments += [folder, source / "golden.safetensors", folder / "logits"]
        with torch.no_grad():
            logits.append(model(golden(source)["full.input_ids"]).logits)
    plain.run(PLAIN, *arguments)
    for source, own in zip((THIRD, FOURTH), logits, strict=True):
        assert load_file(tmp_path / source.name / "logits")["logits"].equal(own)


def test_the_32k_variants_reach_long_contexts_each_in_its_own_way():
    config = json.loads((THIRD / "config.json").read_text()) | {"rope_ratio": 50, "seq_length": 32768}
    third = translate_config(recognise(config))
    assert third["rope_parameters"]["rope_theta"] == 500_000 and third["rope_parameters"]["rope_type"] == "default"
    second = translate_config(recognise(config | {"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 16}))
    assert second["rope_parameters"] == {
        "rope_type": "linear",
        "factor": 16,
        "rope_theta": 10_000,
        "partial_rotary_factor": 0.5,
    }
    assert second["max_position_embeddings"] == third["max_position_embeddings"] == 32768


@torch.no_grad()
def test_linear_scaling_is_that_of_positions_divided(tmp_path: Path):
    """ChatGLM2-6B-32K: tokens at 0, 2, 4 … stand where the unscaled model has 0, 1, 2 …"""
    folder = rewrite(THIRD, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "chatglm2-6b-32k", "rope_ratio": 2}))
    scaled, plain = load_model(str(folder), dtype=torch.float32), load_model(str(THIRD), dtype=torch.float32)
    ids = golden(THIRD)["full.input_ids"]
    places = torch.arange(ids.shape[1])[None]
    assert scaled(ids, position_ids=2 * places).logits.allclose(plain(ids, position_ids=places).logits, atol=CLOSE)
    assert not scaled(ids).logits.allclose(plain(ids).logits, atol=1e-3)


def test_every_stop_token_of_the_third_generation_is_known(tmp_path: Path):
    config = json.loads((THIRD / "config.json").read_text())
    assert translate_config(recognise(config | {"padded_vocab_size": 65024}))["eos_token_id"] == [2, 64795, 64797]
    second = config | {"padded_vocab_size": 65024, "_name_or_path": "THUDM/chatglm2-6b"}
    assert translate_config(recognise(second))["eos_token_id"] == 2
    folder = rewrite(FOURTH, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [505, 500], "max_length": 77}))
    found = load_model(str(folder)).generation_config
    assert found.eos_token_id == [505, 507, 509, 500] and found.max_length == 77
