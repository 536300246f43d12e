"""A reward model's accuracy on pairs: what its own training measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.evaluation import examine
from engine.evaluation.examine import Wanted
from engine.prep.prepare import prepare
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation
from engine.protocol.profile import parse
from engine.workers.evaluate import Models
from tests.evaluation.test_examine import Watch
from tests.training.harness import PROFILE, Supervised

CHANGES = (
    "method.kind=reward",
    "data.train=[{source: samples/preference.jsonl}]",
    "data.validation=[{source: samples/preference.jsonl}]",
    "data.max_length=128",
    "training.max_steps=2",
    "checkpoint.every_steps=2",
    "evaluation.every_steps=2",
)


@pytest.mark.slow
def test_accuracy_and_margin_are_those_of_its_training(tiny: Path, bare_home: Home) -> None:
    profile = parse(PROFILE.format(base=tiny), "test", Path("/"), CHANGES, bare_home)
    run = Supervised.create(bare_home, "reward-1", prepare(profile, bare_home, lambda *_: None), *CHANGES)
    try:
        run.train()
        told = run.entries(Evaluation)[-1].values
        watch = Watch()
        models = Models(bare_home, watch)  # type: ignore[arg-type]
        found = examine.evaluate("reward-1", Wanted(), bare_home, Path("/"), models, watch)
        with pytest.raises(ValueError, match="is measured on preference pairs"):
            examine.evaluate("reward-1", Wanted(data="samples/text.jsonl"), bare_home, Path("/"), models, watch)
    finally:
        run.close()
    metrics = found["metrics"]
    assert metrics["reward_accuracy"] == told["eval/accuracy"]
    assert metrics["reward_margin"] == pytest.approx(told["eval/margin"], rel=1e-4, abs=1e-6)
    assert metrics["score_chosen"] == pytest.approx(told["eval/score_chosen"], rel=1e-4)
    assert found["rows"] == 12 and found["replies"] == 0
