"""What a run's metrics say about it: made journals of known illness, and healthy ones."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from engine.config.diagnosis import Evidence, Finding, diagnose, list_advice, read_evidence
from engine.protocol import journal
from engine.protocol.codes import CODES

HEALTHY = {
    "loss": lambda s: 0.6 + 2.0 * math.exp(-s / 20),
    "norm": lambda s: 0.8,
    "rate": lambda s: 1e-4 * min(1, s / 5),
}


def make_journal(
    steps: int = 60, facts: dict[str, Any] | None = None, latest: dict[str, float] | None = None, seed: int = 0,
    trained: int = 40, **curves: Any,
) -> Evidence:  # fmt: skip
    rng, drawn = random.Random(seed), {**HEALTHY, **curves}
    entries: list[journal.AnyEntry] = [
        journal.Start(attempt=1, max_steps=steps, epochs=1, steps_per_epoch=steps, processes=1, global_batch=4,
                      parameters=9, trainable_parameters=3, rows=40, trained_tokens=trained,
                      facts={"tokens": 100} | (facts or {}))
    ]  # fmt: skip
    for step in range(1, steps + 1):
        noise = 1 + 0.05 * rng.uniform(-1, 1)
        values = {
            f"train/{name}": curve(step) for name, curve in (("loss", drawn["loss"]), ("grad_norm", drawn["norm"]))
        }
        noisy = {name: value and value * noise for name, value in values.items()}
        entries.append(
            journal.Metrics(attempt=1, step=step, values=noisy | {"train/learning_rate": drawn["rate"](step)})
        )
    if latest:
        entries.append(journal.Metrics(attempt=1, step=steps, values={**entries[-1].values, **latest}))  # type: ignore[union-attr]
    profile = {"training": {"learning_rate": 1e-4, "max_grad_norm": 1.0, "warmup": drawn.get("warmup", 5)}}
    return read_evidence(entries, profile)


ILL: dict[str, dict[str, Any]] = {
    "learning.masked": {"facts": {"rows_masked": 20, "rows_truncated": 25}},
    "learning.not_finite": {"loss": lambda s: None if s > 50 else 1.0 + 2 * math.exp(-s / 9)},
    "learning.rate_zero": {"rate": lambda s: 0.0, "loss": lambda s: 2.5},
    "learning.rate_unreached": {"rate": lambda s: 1e-4 * s / 200, "warmup": 200},
    "learning.diverging": {"loss": lambda s: 1.0 + 0.05 * max(0, s - 20)},
    "learning.gradient_exploding": {"norm": lambda s: 0.5 * 1.2**s},
    "learning.weights_still": {"latest": {"train/weights_changed": 0.001}},
    "learning.gradient_vanishing": {"norm": lambda s: 1e-9, "loss": lambda s: 1.0 - s / 100},
    "learning.clipped": {"norm": lambda s: 8.0},
    "learning.flat": {"loss": lambda s: 2.5, "steps": 200},
    "learning.duplicates": {"facts": {"duplicates": 0.4}},
    "slow.data": {"latest": {"time/data": 0.31}},
    "device.unreliable": {"latest": {"card/faults": 4.0, "card/ill": 1.0, "card/ill_rank": 3.0}},
    "slow.throttled": {"latest": {"card/faults": 1.0, "card/ill": 2.0, "card/temperature": 91.0}},
    "slow.link": {"latest": {"card/faults": 32.0, "card/ill": 1.0, "card/ill_rank": 5.0}},
    "slow.rank": {"latest": {"time/slowest_rank": 3.0, "time/slowest_factor": 1.4}},
}


@pytest.mark.parametrize("code", ILL)
def test_each_illness_is_named_first(code: str) -> None:
    for seed in range(5):
        found = diagnose(make_journal(seed=seed, **ILL[code]))
        assert found and found[0].code == code, found
        assert found[0].code in CODES and found[0].hint and any(sign.isdigit() for sign in found[0].message)


@pytest.mark.parametrize(
    "healthy",
    [
        {},
        {"steps": 6},
        {"steps": 11},
        {"steps": 2000},
        {"loss": lambda s: 0.01},
        {"loss": lambda s: 1.2 + 0.3 * math.sin(s)},  # rows of different difficulty
        {"norm": lambda s: 1.5},  # clipped, as is usual
        {"rate": lambda s: 1e-4 * (1 - s / 61), "latest": {"time/data": 0.05, "train/weights_changed": 0.97}},
        {"facts": {"duplicates": 0.02}},
        {"facts": {"tokens": 400_000}, "trained": 120},  # prompts of 10,000 tokens, replies of three
        {"facts": {"rows_truncated": 40, "tokens": 400_000}, "trained": 80},  # long documents cut, short labels kept
        {"facts": {"rows_masked": 2, "rows_truncated": 12}},
        {"facts": {"rows_kept": 5000, "rows_masked": 60, "rows_truncated": 90}},  # packed into 40
        {"latest": {"card/temperature": 83.0, "card/faults": 0.0, "card/ill": 0.0}},
        {"latest": {"time/slowest_rank": 1.0, "time/slowest_factor": 1.05, "time/slowest_faults": 0.0}},
    ],
)
def test_a_healthy_run_has_no_findings(healthy: dict[str, Any]) -> None:
    for seed in range(5):
        assert diagnose(make_journal(seed=seed, **healthy)) == []
    assert diagnose(Evidence()) == []


def test_the_hint_has_the_figure_to_set() -> None:
    found = {each.code: each for each in diagnose(make_journal(**ILL["learning.diverging"]))}
    assert "training.learning_rate to 2e-05" in found["learning.diverging"].hint
    assert "max_grad_norm to 16" in diagnose(make_journal(**ILL["learning.clipped"]))[0].hint


def test_a_later_attempt_replaces_the_values_of_an_earlier_one() -> None:
    old = [journal.Metrics(attempt=1, step=step, values={"train/loss": 99.0}) for step in range(30)]
    new = [journal.Metrics(attempt=2, step=step, values={"train/loss": 2 * math.exp(-step / 10)}) for step in range(30)]
    assert diagnose(read_evidence([*old, *new], {})) == []


def test_what_was_taken_back_does_not_count() -> None:
    """Neither the steps after the one that a run was resumed from, nor what the earlier attempt said of itself."""
    evidence = make_journal(60, loss=lambda s: None if s > 50 else 2.0, latest={"time/data": 0.9})
    start = journal.Start(attempt=2, step=40, max_steps=60, epochs=1, steps_per_epoch=60, processes=1, global_batch=4,
                          parameters=9, trainable_parameters=3, rows=40, trained_tokens=40)  # fmt: skip
    entries: list[journal.AnyEntry] = [
        journal.Metrics(attempt=1, step=step, values={"train/loss": value, "time/data": 0.9})
        for step, value in evidence.series["train/loss"]
    ]
    after = journal.Metrics(
        attempt=2, step=41, values={"train/loss": 2.0, "train/learning_rate": 1e-4, "train/weights_changed": 0.0}
    )
    assert {each.code for each in diagnose(read_evidence(entries, {}))} == {"learning.not_finite", "slow.data"}
    assert diagnose(read_evidence([*entries, start, after], {})) == []


def test_a_loss_that_says_nothing_is_not_looked_at() -> None:
    loss = {"steps": 200, "loss": lambda s: 0.2 * math.sin(s)}
    assert diagnose(make_journal(facts={"method": "grpo"}, **loss)) == []


def test_advice_names_what_stands_out_the_largest_first() -> None:
    values = {"time/data": 0.31, "time/forward": 0.4, "time/saving": 0.16, "train/padding": 0.2, "time/logging": None,
              "time/slowest_rank": 3.0, "time/slowest_factor": 1.4}  # fmt: skip
    found = list_advice(values, lambda rank: {3: "throttled, 84 °C"}.get(rank, ""))
    assert [each.code for each in found] == ["slow.data", "slow.rank", "slow.saving"]
    assert found[0][1:] == ("31 % waiting for data", "training.workers 4")
    assert found[1].message == "rank 3 is 1.4 × slower: throttled, 84 °C"
    assert list_advice({}) == []
    card = {"time/slowest_temperature": 84.0, "time/slowest_faults": 1.0, "card/faults": 1.0, "card/ill": 1.0}
    (found,) = list_advice({"time/slowest_rank": 3.0, "time/slowest_factor": 1.4, **card})
    assert found.message == "rank 3 is 1.4 × slower: throttled, 84 °C"


def test_a_throttled_card_is_told_beside_a_rank_that_is_slow_for_another_reason() -> None:
    slow = {"time/slowest_rank": 3.0, "time/slowest_factor": 1.4, "time/slowest_faults": 0.0}
    found = list_advice(slow | {"card/faults": 1.0, "card/ill": 1.0, "card/ill_rank": 5.0})
    assert [each.code for each in found] == ["slow.rank", "slow.throttled"]


def test_rows_that_are_cut_to_nothing_are_named() -> None:
    (found,) = diagnose(make_journal(facts={"rows_truncated": 30}, trained=44))
    assert found.code == "learning.masked" and "30 of 40 rows are cut off" in found.message


def test_every_code_of_a_finding_is_listed_and_explained() -> None:
    from engine.config import diagnosis
    from engine.protocol.explanations import read_explanations

    assert {share.code for share in diagnosis._SHARES} <= read_explanations().keys()
    assert Finding._fields == ("code", "message", "hint")
