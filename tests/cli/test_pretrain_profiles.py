"""The built-in profiles of pretraining, scaled down to a few steps on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import find, load
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start
from tests.training.harness import WORDS, Supervised, make_model

TINY = (
    "model.config={hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 4}"
)
SMALL = (
    "training.max_steps=2",
    "training.rehearsal=false",
    "limits.disk_free_gb=0",
    "launch.processes=1",
    "logging.plots=false",
)


@pytest.fixture
def train(bare_home: Home) -> Iterator[Callable[..., tuple[Supervised, dict[str, Any]]]]:
    """`train(name, "a.b=c", …)`: a run of this profile to its end, and what it measured last."""
    made: list[Supervised] = []

    def run(name: str, *changes: str) -> tuple[Supervised, dict[str, Any]]:
        profile = load(find(name), (*SMALL, *changes), bare_home)
        prepared = prepare(profile, bare_home, lambda *_: None)
        text = profile.to_yaml().replace("{", "{{").replace("}", "}}")
        made.append(Supervised.create(bare_home, name, prepared, profile=text))
        made[-1].train(processes=profile.launch.processes)
        return made[-1], made[-1].entries(Evaluation)[-1].values

    yield run
    for each in made:
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain-small", "pretrain-medium"])
def test_from_scratch(train: Any, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made, values = train(name, TINY)
    model = AutoModelForCausalLM.from_pretrained(made.run.checkpoint(2))
    tokenizer = AutoTokenizer.from_pretrained(made.run.checkpoint(2))
    assert model.config.vocab_size == len(tokenizer) > 257
    assert 257 < values["eval/perplexity"] < 1.2 * len(tokenizer)  # hardly anything is learnt in two steps


@pytest.mark.slow
def test_continued(train: Any, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    small = ("data.max_length=64", "launch.processes=2")
    made, values = train("pretrain-continued", f"model.base={base}", *small)
    assert "strategy: zero2" in made.run.profile.read_text()
    (start,) = made.entries(Start)
    assert start.processes == 2
    assert 1 < values["eval/perplexity"] < WORDS + 4
    assert json.loads(made.run.prepared.read_text())["base"] == str(base)
