"""The paired bootstrap: intervals that equal known ones, and a verdict of noise for equal models."""

from __future__ import annotations

import random

import pytest

from engine.evaluation.compare import compare
from engine.metrics import registry
from engine.tasks.answer import Answer


def rows(right: list[bool]) -> dict[int, registry.Tallies]:
    return {row: {"exact_match": {"compared": 1, "same": each}} for row, each in enumerate(right)}


def test_a_share_has_the_interval_of_its_standard_error() -> None:
    generator = random.Random(1)
    first = [generator.random() < 0.5 for _ in range(400)]
    second = [each or generator.random() < 0.2 for each in first]  # a tenth better, row by row
    found = compare(rows(first), rows(second), None)["differences"]["exact_match"]
    gained = [b - a for a, b in zip(first, second, strict=True)]
    mean = sum(gained) / 400
    error = (sum((each - mean) ** 2 for each in gained) / 400 / 400) ** 0.5
    assert found["difference"] == pytest.approx(mean)
    assert found["low"] == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert found["high"] == pytest.approx(mean + 1.96 * error, abs=0.2 * error)
    assert found["beyond_noise"] and found["better"] == 1


def test_equal_models_differ_within_noise() -> None:
    beyond = 0
    for seed in range(40):
        generator = random.Random(seed)
        pair = [rows([generator.random() < 0.6 for _ in range(60)]) for _ in range(2)]
        beyond += compare(*pair, None, resamples=200)["differences"]["exact_match"]["beyond_noise"]
    assert beyond <= 6, "of 40 about two are beyond a 95 % interval by chance"
    same = rows([True, False] * 10)
    found = compare(same, same, None)["differences"]["exact_match"]
    assert (found["difference"], found["low"], found["high"], found["better"]) == (0, 0, 0, 0)


def test_metrics_are_computed_from_sums_and_a_lower_loss_is_better() -> None:
    long, short = {"units": 90, "loss": 90.0, "right": 0}, {"units": 10, "loss": 100.0, "right": 0}
    first = {row: {"tokens": long if row % 2 else short} for row in range(40)}
    second = {row: {"tokens": {**tally["tokens"], "loss": tally["tokens"]["loss"] / 2}} for row, tally in first.items()}
    found = compare(first, second, None)["differences"]
    assert found["loss"]["first"] == pytest.approx(1.9), "a mean over tokens, not over rows"
    assert found["loss"]["difference"] == pytest.approx(-0.95) and found["loss"]["better"] == 1
    assert found["perplexity"]["better"] == 1


def test_only_common_rows_are_compared_and_descriptions_have_no_winner() -> None:
    def of(texts: list[str], start: int) -> dict[int, registry.Tallies]:
        return {start + at: registry.tally_answer(Answer(text, "a b"), None) for at, text in enumerate(texts)}

    found = compare(of(["a b"] * 30, 0), of(["a b c d e f g h"] * 30, 10), None)
    assert found["compared_rows"] == 20
    assert found["differences"]["reply_characters"]["beyond_noise"]
    assert found["differences"]["reply_characters"]["better"] == 0
    assert found["differences"]["rouge_l"]["better"] == -1
    with pytest.raises(ValueError, match="no row"):
        compare(of(["a"], 0), of(["a"], 5), None)
