"""Directions of metrics, the metrics that a run measures, and those that a profile may name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.config.profile import ProfileError, parse
from engine.metrics import METRICS, registry
from engine.metrics.metric import Direction, load_metric
from engine.protocol.home import Home
from engine.training.checkpoints import find_best
from tests.training.harness import PROFILE

PAIRS = tuple(f"data.{part}=[{{source: samples/preference.jsonl}}]" for part in ("train", "validation"))
GRPO = ("method={kind: grpo, reward: {task: triples, metric: triples_f1}, generations: 2, max_new_tokens: 8}",)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("loss", Direction.LOWER),
        ("eval/loss", Direction.LOWER),
        ("test/perplexity", Direction.LOWER),
        ("no_stop_rate", Direction.LOWER),
        ("eval/nll_loss", Direction.LOWER),
        ("train/completions_cut", Direction.LOWER),
        ("triples_f1", Direction.HIGHER),
        ("triples_recall.born_in", Direction.HIGHER),
        ("judge_depth", Direction.HIGHER),
        ("judge_unread", Direction.LOWER),
        ("eval/rewards_margin", Direction.HIGHER),
        ("eval/accuracy", Direction.HIGHER),
        ("eval/reward", Direction.HIGHER),
        ("reply_tokens", Direction.NEITHER),
        ("kl", Direction.NEITHER),
        ("arguments_per_graph", Direction.NEITHER),
        ("train/learning_rate", Direction.NEITHER),
    ],
)
def test_directions(name: str, direction: Direction) -> None:
    assert registry.direction(name) == direction
    assert json.dumps(registry.direction(name)) == str(int(direction))


def test_no_two_metrics_share_a_name_and_every_value_has_a_direction() -> None:
    names = [name for each in METRICS for name in load_metric(each).directions]
    assert len(names) == len(set(names)) > 20
    assert not registry.is_known("eval/los") and registry.is_known("eval/loss")


def test_the_best_checkpoint_is_the_lowest_or_the_highest() -> None:
    values = {1: {"eval/loss": 2.0, "eval/completions_cut": 0.5, "eval/triples_f1": 0.1}}
    values[2] = {"eval/loss": 1.0, "eval/completions_cut": 0.9, "eval/triples_f1": 0.2}
    assert [find_best(values, name) for name in values[1]] == [2, 1, 2]


def check(tmp_path: Path, *changes: str) -> None:
    text = PROFILE.format(base="smollm2-135m-instruct")
    parse(text, "test", Path("/"), ("data.validation=[{source: triples/dev.jsonl}]", *changes), Home(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        ("checkpoint.best_by=eval/token_accuracy",),
        ("evaluation.task=triples", "checkpoint.best_by=eval/triples_f1", "evaluation.thresholds=['rouge_l > 0.5']"),
        ("method.kind=pretrain", "checkpoint.best_by=eval/perplexity"),
        ("method.kind=dpo", *PAIRS, "checkpoint.best_by=eval/rewards_accuracy"),
        ("method.kind=reward", *PAIRS, "checkpoint.best_by=eval/accuracy"),
        ("data.validation=[]", "checkpoint.best_by=eval/anything"),  # nothing is evaluated
        ("evaluation.thresholds=['triples_f1.born_in >= 1', 'judge_depth > 3', 'test/loss < 1']",),
    ],
)
def test_what_a_run_measures_may_be_named(tmp_path: Path, changes: tuple[str, ...]) -> None:
    check(tmp_path, *changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("checkpoint.best_by=eval/los",), "best_by: eval/los is not measured by sft, did you mean eval/loss?"),
        (("checkpoint.best_by=loss",), "set it to eval/loss or eval/token_accuracy"),
        (("checkpoint.best_by=eval/triples_f1",), "eval/triples_f1 is not measured by sft"),
        (("evaluation={task: triples, samples: 0}", "checkpoint.best_by=eval/triples_f1"), "is not measured by sft"),
        (("method.kind=dpo", *PAIRS, "checkpoint.best_by=eval/token_accuracy"), "is not measured by dpo"),
        (
            ("method.kind=dpo", *PAIRS, "checkpoint.best_by=eval/rewards_chosen"),
            "no value of eval/rewards_chosen is better than another: set it to eval/loss,",
        ),
        (("evaluation.early_stopping.metric=eval/perplexity",), "early_stopping.metric: eval/perplexity is not"),
        (GRPO, "best_by: eval/loss is not measured by grpo"),
        (("evaluation.thresholds=['schema_valid >= 1']",), "no metric schema_valid, did you mean schema_validity?"),
    ],
)
def test_what_no_run_of_the_profile_measures_is_refused(tmp_path: Path, changes: tuple[str, ...], words: str) -> None:
    with pytest.raises(ProfileError) as error:
        check(tmp_path, *changes)
    assert words in str(error.value)
