"""A model folder without a tokenizer: the model loads, and reports that it cannot chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.inference.loaded_model import load
from engine.inference.sampling import Sampling
from engine.models import targets
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError

ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, eos_token_id=2, **sizes)).save_pretrained(tmp_path / "mute")
    return tmp_path / "mute"


def test_the_model_loads_and_reports_that_it_cannot_chat(folder: Path, tmp_path: Path) -> None:
    import torch

    loaded = load(str(folder), home=Home(tmp_path), dtype="float32", device="cpu")
    assert loaded.tokenizer is None and not loaded.templated and loaded.stop_ids == {2}
    assert loaded.model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 64)
    for ask in (lambda: loaded.generate(ASKED, Sampling()), lambda: loaded.batch([ASKED], Sampling(4))):
        with pytest.raises(ProblemError) as refused:
            ask()
        assert refused.value.problem.title == "mute cannot chat" and "tokenizer" in refused.value.problem.hint


def test_other_damage_is_still_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="cannot be loaded") as refused:
        targets.check(targets.resolve(str(folder), Home(tmp_path), folder))
    assert "no tokenizer" in refused.value.problem.cause
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ProblemError, match="cannot be loaded"):
        load(str(folder), home=Home(tmp_path), device="cpu")
