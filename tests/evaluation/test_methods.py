"""Evaluations of other methods' runs equal those of their own training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import parse
from engine.evaluation import run as examine
from engine.evaluation.request import EvaluationRequest
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation
from engine.workers.evaluate import Models
from tests.evaluation.test_examine import Watch
from tests.training.harness import PROFILE, Supervised

COMMON = ("training.max_steps=2", "checkpoint.every_steps=2", "evaluation.every_steps=2")


@contextmanager
def trained(home: Home, base: Path, *changes: str) -> Iterator[dict[str, Any]]:
    """What training measured last; the run `run-1` is there meanwhile."""
    profile = parse(PROFILE.format(base=base), "test", Path("/"), (*COMMON, *changes), home)
    run = Supervised.create(home, "run-1", prepare(profile, home, lambda *_: None), *COMMON, *changes)
    try:
        run.train()
        yield run.entries(Evaluation)[-1].values
    finally:
        run.close()


def evaluate(home: Home, **settings: Any) -> dict[str, Any]:
    watch = Watch()
    models = Models(home, watch)  # type: ignore[arg-type]
    return examine.evaluate("run-1", EvaluationRequest(**settings), home, Path("/"), models, watch)


@pytest.mark.slow
def test_a_reward_models_accuracy_and_margin(tiny: Path, bare_home: Home) -> None:
    rows = [f"data.{part}=[{{source: samples/preference.jsonl}}]" for part in ("train", "validation")]
    with trained(bare_home, tiny, "method.kind=reward", "data.max_length=128", *rows) as told:
        found = evaluate(bare_home)
        with pytest.raises(ValueError, match="it needs preference pairs"):
            evaluate(bare_home, data="samples/text.jsonl")
    metrics = found["metrics"]
    assert metrics["reward_accuracy"] == told["eval/accuracy"]
    assert metrics["reward_margin"] == pytest.approx(told["eval/margin"], rel=1e-4, abs=1e-6)
    assert metrics["score_chosen"] == pytest.approx(told["eval/score_chosen"], rel=1e-4)
    assert found["rows"] == 12 and found["replies"] == 0


@pytest.mark.slow
def test_plain_text_in_blocks(tiny: Path, bare_home: Home) -> None:
    rows = [f"data.{part}=[{{source: samples/text.jsonl}}]" for part in ("train", "validation")]
    changes = ("method.kind=pretrain", "method.sequences=blocks", "adapter={kind: none}", "data.max_length=64")
    with trained(bare_home, tiny, *changes, *rows) as told:
        found = evaluate(bare_home)
    assert found["metrics"]["loss"] == pytest.approx(told["eval/loss"], rel=1e-5)
    assert found["metrics"]["perplexity"] == pytest.approx(told["eval/perplexity"], rel=1e-4)
