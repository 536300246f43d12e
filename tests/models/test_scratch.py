"""Models with a shape of their own: which are refused, and what is built."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from engine.config.profile import ProfileError, parse
from engine.models import scratch
from engine.options.model import ModelOptions
from engine.protocol.home import Home
from tests.training.harness import WORDS, make_model

SMALLEST = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def options(**model: Any) -> ModelOptions:
    return ModelOptions.model_validate({"init": "config", **model})


def problems(home: Path, base: Path, text: str) -> str:
    with pytest.raises(ProfileError) as raised:
        parse(
            f"data: {{train: [{{source: samples/text.jsonl}}]}}\n{text.format(base=base)}",
            "own.yaml",
            home,
            home=Home(home),
        )
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        (
            "model: {{base: {base}, init: config, quantization: nf4, config: {{hidden_size: 30, "
            "num_attention_heads: 4, num_key_value_heads: 3, max_position_embeddings: 512}}}}\nadapter: {{kind: lora}}",
            [
                "model.config.hidden_size: 30 cannot be shared evenly by 4 heads",
                "model.config.num_key_value_heads: must be a divisor of num_attention_heads (4), not 3",
                "data.max_length: is 1024, and the new model has positions for 512 tokens",
                "model.quantization: random weights are trained in full",
                "adapter.kind: an adapter on random weights learns nothing useful",
            ],
        ),
        (
            (
                "model: {{base: {base}, init: config, config: {{hiden_size: 32, num_hidden_layers: 0}}}}\n"
                "adapter: {{kind: none}}"
            ),
            [
                "model.config.hiden_size: unknown key, did you mean hidden_size?",
                "own.yaml:2:",
                "model.config.num_hidden_layers",
            ],
        ),
        (
            "model: {{base: {base}, size: small}}\nadapter: {{kind: none}}",
            ["model.size: is only for a model that starts from random weights: set model.init to config"],
        ),
        (
            (
                "model: {{base: {base}, init: config, config: {{hidden_size: 36, num_attention_heads: 4}}}}\n"
                "adapter: {{kind: none}}"
            ),
            ["model.config.head_dim: must be even"],
        ),
        (
            (
                "model: {{base: {base}, init: config}}\nadapter: {{kind: none}}\n"
                "method: {{kind: pretrain}}\ndata: {{packing: true}}"
            ),
            ["data.packing: does not apply to pretraining: set method.sequences to packed instead"],
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(tmp_path: Path, tiny: Path, text: str, complaints: list[str]) -> None:
    if "packing" in text:
        with pytest.raises(ProfileError) as raised:
            parse(
                text.format(base=tiny).replace("packing", "train: [{source: samples/text.jsonl}], packing"),
                "own.yaml",
                tmp_path,
                home=Home(tmp_path),
            )
        said = str(raised.value)
    else:
        said = problems(tmp_path, tiny, text)
    for complaint in complaints:
        assert complaint in said
    if complaints[0].startswith("model.config.hidden_size"):
        assert len(said.splitlines()) == len(complaints), said


def test_sizes_are_what_the_help_says() -> None:
    help_text = ModelOptions.model_fields["size"].description or ""
    counts = []
    for size in scratch.SIZES:
        wanted = scratch.build_shape(options(size=size))
        wanted.pop("rope_theta")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=1, **wanted))
        counts.append(round(sum(weight.numel() for weight in model.parameters()) / 1e6))
    assert f"{counts[0]} or {counts[1]} million" in help_text and list(scratch.SIZES) == ["small", "medium"]


def test_a_shape_of_ones_own_is_based_on_a_size() -> None:
    found = scratch.build_shape(options(size="medium", config={"num_hidden_layers": 3, "tie_word_embeddings": False}))
    assert (found["num_hidden_layers"], found["hidden_size"], found["tie_word_embeddings"]) == (3, 1024, False)
    assert scratch.build_shape(options(config={"rope_theta": 5e5}))["hidden_size"] == 512


def test_origin_describes_what_a_run_starts_from() -> None:
    own = {"tokenizer": "folder", "base": "unused"}
    begins = [options(size="medium", **own), options(config=SMALLEST, **own), options(**own), ModelOptions(base="last")]
    assert [each.origin for each in begins] == ["random (medium)", "random (own shape)", "unused", "last"]


def test_weights_are_the_seeds_alone_and_load_plainly(tiny: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)

    before = itertools.count()

    def built(seed: int, *, own: bool = True, **model: Any) -> Any:
        torch.manual_seed(next(before))  # what was drawn before must not matter
        return scratch.build_model(options(**model), str(tiny), tokenizer, own, [1], seed)

    one, same, other = (built(seed, config=SMALLEST | {"num_key_value_heads": 1}) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.config.vocab_size == len(tokenizer) == WORDS + 4 and one.dtype == torch.float32
    assert (one.config.eos_token_id, one.config.pad_token_id, one.generation_config.eos_token_id) == (1, 0, [1])
    assert 0.018 < one.model.layers[0].mlp.up_proj.weight.std() < 0.022
    one.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("w1 w2 w3", return_tensors="pt").input_ids
    assert torch.equal(loaded(ids).logits, one(ids).logits)
    lent = built(3, own=False)  # no shape in the profile: the base's, with weights of its own
    base = AutoModelForCausalLM.from_pretrained(tiny)
    assert lent.config.hidden_size == base.config.hidden_size == 64
    assert not torch.equal(lent.lm_head.weight, base.lm_head.weight)


def test_an_end_token_that_also_pads_is_still_trained(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token = tokenizer.eos_token
    model = scratch.build_model(options(config=SMALLEST | {"num_key_value_heads": 1}), None, tokenizer, True, [1], 0)
    model(torch.tensor([[1, 5]]), labels=torch.tensor([[1, 5]])).loss.backward()
    untied = model.model.embed_tokens.padding_idx
    assert untied is None
