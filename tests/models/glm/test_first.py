"""ChatGLM-6B against the outputs of the original code, in every way that a row can be given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.inference.generate import generate_batch, stream
from engine.inference.sampling import Sampling
from engine.models.loading import load_model
from engine.models.segments import can_use_segments
from tests.models.glm.layouts import FIRST, golden, rewrite

CASES = ("prompt", "train", "mask", "pad")
CLOSE = 1e-5
PAD = 3


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return load_model(str(FIRST), dtype=torch.float32, attn_implementation=request.param)


@pytest.fixture(scope="module")
def told():
    return golden(FIRST)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_the_originals_however_mask_and_positions_come(model, told, case):
    ids = told[f"{case}.input_ids"]
    real = ids != PAD
    ways = {
        "from the ids": {},
        "a mask of padding": {"attention_mask": real.long()},
        "as the original made them": {
            "attention_mask": ~told[f"{case}.attention_mask_true_is_masked"],
            "position_ids": told[f"{case}.position_ids"],
        },
        "positions of one dimension": {"position_ids": torch.arange(ids.shape[1])[None]},
    }
    for way, given in ways.items():
        difference = (model(ids, **given).logits - told[f"{case}.logits"])[real].abs().max()
        assert difference < CLOSE, way


@pytest.mark.parametrize("case", CASES)
def test_greedy_continuations_are_the_originals_cached_and_not(model, told, case):
    ids = told[f"{case}.input_ids"]
    for cached in (True, False):
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "use_cache": cached}
        reply = model.generate(ids, attention_mask=(ids != PAD).long(), **settings)
        assert reply[:, ids.shape[1] :].tolist() == told[f"{case}.greedy8"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_our_own_loops_give_the_originals_replies(model, told, case):
    """The batch has rows of different lengths, the stream hands over one token at a time and nothing else."""

    class Tokenizer:
        pad_token_id, chat_template, all_special_ids = PAD, None, ()

        def get_added_vocab(self):
            return {}

        def decode(self, ids, **_):
            return ""

    prompts = [[token for token in row if token != PAD] for row in told[f"{case}.input_ids"].tolist()]
    expected = told[f"{case}.greedy8"].tolist()
    # A common beginning, which would be read once for all where attention is causal.
    common = [[7, 8, 9, *prompts[0]], [7, 8, 9, *prompts[1]]]
    assert generate_batch(model, Tokenizer(), prompts, 8, ()) == expected
    assert generate_batch(model, Tokenizer(), common, 8, ()) == [
        generate_batch(model, Tokenizer(), [row], 8, ())[0] for row in common
    ]
    for prompt, reply in zip(prompts, expected, strict=True):
        *_, last = stream(model, Tokenizer(), prompt, Sampling(max_new_tokens=8), ())
        assert last.reply.ids == reply


@torch.no_grad()
def test_a_long_row_and_half_precision(model, told):
    ids = told["long.input_ids"]
    assert (model(ids).logits[:, -8:] - told["long.logits"]).abs().max() < CLOSE
    half = load_model(str(FIRST), dtype=torch.float16, attn_implementation=model.config._attn_implementation)
    difference = (half(ids).logits[:, -8:] - told["long_fp16.logits"]).abs().max()
    # Two units in the last place of the largest logit.
    assert difference <= 2 * 2**-10 * 2 ** told["long_fp16.logits"].abs().max().log2().floor()


def test_the_loss_is_the_originals(model, told):
    loss = model(told["train.input_ids"], labels=told["train.labels"]).loss
    assert abs(loss.item() - told["train.loss"].item()) < 1e-6


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_and_rows_without_sop_are_read_from_left_to_right(model, told):
    ids, logits = told["train.input_ids"], told["train.logits"]
    padded = torch.cat([ids, torch.zeros(2, 5, dtype=torch.long)], 1)
    assert (model(padded).logits[:, : ids.shape[1]] - logits).abs().max() < CLOSE
    plain = torch.arange(10, 30)[None]
    changed = torch.cat([plain[:, :-1], torch.tensor([[77]])], 1)
    assert model(plain).logits[:, :-1].equal(model(changed).logits[:, :-1]), "nothing sees what it is to predict"
    assert not model(ids).logits[:, 0].allclose(model(torch.cat([ids[:, :5], ids[:, 6:]], 1)).logits[:, 0])


def test_it_saves_and_loads_through_the_auto_classes(model, told, tmp_path: Path):
    from transformers import AutoConfig, AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    again, loaded = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(loaded.values())
    ids = told["prompt.input_ids"]
    model_again = load_model(str(tmp_path), attn_implementation=model.config._attn_implementation)
    assert model_again(ids).logits.equal(model(ids).logits)
    assert again.generation_config.eos_token_id == 505
    assert again.lm_head.weight is again.transformer.word_embeddings.weight
    assert not hasattr(AutoConfig.from_pretrained(FIRST), "auto_map")


def test_rows_end_to_end_are_refused_where_the_context_attends_both_ways(model):
    assert not can_use_segments(model)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@torch.no_grad()
def test_shards_of_every_kind_load(told, tmp_path: Path, binary, dtype):
    folder = rewrite(FIRST, tmp_path, shards=3, binary=binary, dtype=dtype)
    loaded = load_model(str(folder), dtype=torch.float32)
    whole = load_model(str(FIRST), dtype=getattr(torch, dtype)).float()
    ids = told["mask.input_ids"]
    assert loaded(ids).logits.allclose(whole(ids).logits, atol=CLOSE)
