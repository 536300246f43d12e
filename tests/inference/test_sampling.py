"""Choosing tokens: like transformers' own processors, and each row by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engine.config.sampling import PRESETS, SamplingOptions
from engine.inference import sampling as sampling_module
from engine.inference.sampling import Row, Sampling, change_sampling, choose, make_sampling, open_row
from engine.inference.sampling import _draw_numbers as draw_numbers
from engine.inference.sampling import _warp as warp
from tests.operations import READ, Operations

SIZE = 300
SETTINGS = [
    {"top_k": 20},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"top_k": 500, "top_p": 1.0},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
    {"top_p": 1e-6},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2, "repetition_penalty": 0.9},
    {"no_repeat_ngram": 3, "top_k": 5},
    {},
]


def logits(rows: int, ties: bool = False) -> torch.Tensor:
    found = torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(rows)) * 4
    return found.round() if ties else found


def history(seed: int) -> list[int]:
    """Of few tokens, so that sequences come again."""
    ids: list[int] = torch.randint(4, (30,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def by_transformers(scores: torch.Tensor, ids: list[int], sampling: Sampling) -> torch.Tensor:
    processors = transformers.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram:
        processors.append(transformers.NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    processors.append(transformers.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p and sampling.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(transformers.MinPLogitsWarper(sampling.min_p))
    return processors(torch.tensor([ids]), scores[None].clone())[0]


@pytest.mark.parametrize("ties", [False, True])
def test_settings_act_as_transformers_processors_do(ties: bool) -> None:
    samplings = [Sampling(**{"temperature": 1.0} | each) for each in SETTINGS]
    scores = logits(len(samplings), ties)
    bent = scores.clone()
    for place, sampling in enumerate(samplings):
        row = Row(sampling, history(place)[:10])
        row.adjust(torch.zeros(SIZE))
        for token in history(place)[10:]:  # what is remembered from call to call is as if it were looked up anew
            row.take(token)
        row.adjust(bent[place])
    found = warp(bent, samplings)
    for place, sampling in enumerate(samplings):
        expected = by_transformers(scores[place], history(place), sampling)
        if ties and sampling.top_p is not None:  # which of the equally likely stay is left to the order of sorting
            assert sorted(found[place].tolist()) == pytest.approx(sorted(expected.tolist()))
        else:
            assert torch.equal(found[place], expected), sampling


def test_a_draw_depends_on_its_own_row_alone() -> None:
    scores = logits(6)
    rows = [Sampling(temperature=1.5, seed=seed, top_k=top_k) for seed, top_k in ((7, None), (8, 50), (7, None))]
    mixed = [
        rows[0],
        Sampling(),
        rows[1],
        Sampling(temperature=1.0),
        replace(rows[0], min_p=0.2),
        Sampling(repetition_penalty=2.0),
    ]

    def drawn(samplings: list[Sampling], of: torch.Tensor) -> list[list[int]]:
        opened_rows = [open_row(each, [1, 2]) for each in samplings]
        for _ in range(20):
            choose(of, opened_rows)
        return [row.history[2:] for row in opened_rows]

    together = drawn(mixed, scores)
    for place in (0, 1, 2, 4, 5):
        assert together[place] == drawn([mixed[place]], scores[place : place + 1])[0]
    assert together[0] != together[3] and len({*together[0]}) > 3
    assert {*together[1]} == {int(scores[1].argmax())}


def test_rows_without_a_seed_use_torchs_default_one() -> None:
    def drawn(seed: int) -> Any:
        torch.manual_seed(seed)
        return choose(logits(4), [Row(Sampling(temperature=2.0), []) for _ in range(4)])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    state = torch.get_rng_state()
    choose(logits(2), [open_row(Sampling(temperature=2.0, seed=3), []), open_row(Sampling(), [])])
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_is_drawn_by_as_many_operations_as_a_row() -> None:
    """And the host waits for the device as often: once."""

    def operations(rows: int) -> Counter[str]:
        settings = [Sampling(temperature=1.0, seed=seed, top_k=50, top_p=0.9) for seed in range(rows)]
        opened = [open_row(each, [1, 2]) for each in settings]
        scores = logits(rows)
        with Operations() as counted:
            choose(scores, opened)
        found: Counter[str] = counted.counts
        return found

    few, many = operations(2), operations(64)
    assert few == many and few.total() < 90
    assert few[READ] <= 1, "only ties at the border of top-k are counted on the host"


@pytest.mark.parametrize("seeds", [range(4000), [7] * 4000])
def test_draws_have_the_probabilities_of_the_tokens(seeds: Sequence[int]) -> None:
    """Over neighbouring seeds at one place, and over the places of one seed."""
    scores = torch.tensor([2.0, -torch.inf, 0.5, 0.0, -1.0, 1.0, -3.0, 0.2])
    expected = scores.softmax(-1)
    same = len({*seeds}) == 1
    rows = [Row(Sampling(temperature=1.0), [0] * (place if same else 3), seed) for place, seed in enumerate(seeds)]
    drawn = choose(scores.expand(len(rows), -1), rows)
    counts = torch.bincount(drawn, minlength=len(scores)).double()
    wanted = expected.double() * len(rows)
    possible = wanted > 0
    assert counts[~possible].sum() == 0
    squares = float(((counts - wanted)[possible] ** 2 / wanted[possible]).sum())
    assert squares < 22.5, "chi-square with 6 degrees of freedom exceeds this once in a thousand"


def test_the_numbers_of_a_seed_are_those_that_are_documented() -> None:
    """Another implementation of splitmix64, in whole numbers of Python: replies of today come again tomorrow."""

    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    step = 0x9E3779B97F4A7C15
    pairs = [(0, 0), (1, 0), (0, 1), (2**63 - 1, 4000), (-1, 5), (2**70 + 3, 7)]
    expected = [(mix((mix((seed + step) % 2**64) + (place + 1) * step) % 2**64) >> 11) / 2**53 for seed, place in pairs]
    assert draw_numbers(*zip(*pairs, strict=True)).tolist() == expected


def test_an_excluded_token_is_never_drawn_by_rounding() -> None:
    """Where the number is all but 1, or the sums of probabilities round."""
    probabilities = torch.tensor([[0.1] * 10 + [0.0] * 5, [0.0] * 14 + [1.0], [0.3] + [0.0] * 13 + [0.7]])
    rows = [Row(Sampling(temperature=1.0), [], seed) for seed in range(3)]
    for number in (0.0, 1 - 2.0**-53, 0.3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling_module, "_draw_numbers", lambda *_, number=number: np.full(3, number))
            drawn = sampling_module._draw_seeded(probabilities, rows)
        assert (probabilities.gather(1, drawn[:, None]) > 0).all()


def test_rows_whose_logits_are_no_numbers_fail_alone() -> None:
    scores = logits(4)
    scores[1] = torch.nan
    rows = [open_row(Sampling(temperature=1.0, seed=seed), [1]) for seed in range(4)]
    failed: dict[int, Exception] = {}
    choose(scores, rows, failed)
    assert [*failed] == [1] and [len(row.history) for row in rows] == [2, 1, 2, 2]


def test_settings_of_a_request_are_checked() -> None:
    options = {name: info.get_default(call_default_factory=True) for name, info in SamplingOptions.model_fields.items()}
    assert {each.name for each in fields(Sampling)} == {*options, "schema"}
    assert make_sampling({}) == Sampling(**options | {"stop": ()}) == Sampling()
    assert make_sampling({"preset": "chat", "top_k": 7, "top_p": None, "messages": []}) == Sampling(
        temperature=0.8, top_k=7, top_p=0.9
    )
    assert make_sampling({"stop": "end"}).stop == make_sampling({"stop": ["end"]}).stop == ("end",)
    assert [*PRESETS] == ["creative", "chat", "factual", "greedy"]
    for wrong, said in (
        ({"temperature": -1}, "temperature should be greater than or equal to 0, not -1"),
        ({"top_k": 0.5}, "top_k should be a valid integer, not 0.5"),
        ({"preset": "wild"}, "no preset 'wild': choose one of creative"),
        ({"stop": [""]}, "empty text"),
        ({"schema": 3}, "an object, not a number"),
    ):
        with pytest.raises(ValueError, match=said):
            make_sampling(wrong)


def test_keywords_change_single_fields() -> None:
    settings = Sampling(max_new_tokens=8, top_k=5, stop=("a",))
    changed = change_sampling(settings, {"temperature": 0.7, "stop": "end", "top_k": None})
    assert changed == Sampling(max_new_tokens=8, temperature=0.7, stop=("end",))
    assert change_sampling(settings, {}) is settings
    with pytest.raises(TypeError, match="'temprature' is no setting of sampling, did you mean temperature"):
        change_sampling(settings, {"temprature": 0.7})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match="'device' is no setting of sampling; they are max_new_tokens, temperature"):
        change_sampling(settings, {"device": "cpu"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ValueError, match="top_p should be less than or equal to 1, not 2"):
        change_sampling(settings, {"top_p": 2})
