"""The built-in profiles of pretraining, scaled down to a few steps on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start, read
from tests.cli.conftest import Cockpit
from tests.training.harness import WORDS, make_model

TINY = "model.config={hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4}"
SMALL = (
    "training.max_steps=2",
    "training.rehearsal=false",
    "limits.disk_free_gb=0",
    "launch.processes=1",
    "logging.plots=false",
)


def _train(cockpit: Cockpit, home: Home, name: str, *changes: str) -> tuple[Any, dict[str, Any]]:
    overrides = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    done = cockpit("train", name, "--json", *overrides, seconds=280)
    assert done.returncode == 0, done.stdout + done.stderr
    run = home.run(json.loads(done.stdout.splitlines()[-1])["run"])
    return run, [entry for entry, _ in read(run.events) if isinstance(entry, Evaluation)][-1].values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain-small", "pretrain-medium"])
def test_from_scratch(cockpit: Cockpit, bare_home: Home, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, values = _train(cockpit, bare_home, name, TINY)
    model = AutoModelForCausalLM.from_pretrained(run.checkpoint(2))
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint(2))
    assert model.config.vocab_size == len(tokenizer) > 257
    assert 257 < values["eval/perplexity"] < 1.2 * len(tokenizer)  # hardly anything is learnt in two steps


@pytest.mark.slow
def test_continued(cockpit: Cockpit, bare_home: Home, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    small = ("data.max_length=64", "launch.processes=2")
    run, values = _train(cockpit, bare_home, "pretrain-continued", f"model.base={base}", *small)
    assert "strategy: zero2" in run.profile.read_text()
    (start,) = [entry for entry, _ in read(run.events) if isinstance(entry, Start)]
    assert start.processes == 2
    assert 1 < values["eval/perplexity"] < WORDS + 4
    assert json.loads(run.prepared.read_text())["base"] == str(base)
