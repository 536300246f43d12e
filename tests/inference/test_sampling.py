"""Choosing tokens: like transformers' own processors, and each row by itself."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import transformers

from engine.config.sampling import PRESETS, SamplingOptions
from engine.inference.sampling import Row, Sampling, change_sampling, choose, make_sampling, open_row
from engine.inference.sampling import _warp as warp

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
        opened_rows = [open_row(each, [1, 2], "cpu") for each in samplings]
        for _ in range(20):
            choose(of, opened_rows)
        return [row.history[2:] for row in opened_rows]

    together = drawn(mixed, scores)
    for place in (0, 1, 2, 4, 5):
        assert together[place] == drawn([mixed[place]], scores[place : place + 1])[0]
    assert together[0] != together[3] and len({*together[0]}) > 3
    assert {*together[1]} == {int(scores[1].argmax())}


def test_rows_without_a_generator_use_torchs_default_one() -> None:
    def drawn(seed: int) -> Any:
        torch.manual_seed(seed)
        return choose(logits(4), [Row(Sampling(temperature=2.0), []) for _ in range(4)])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    state = torch.get_rng_state()
    choose(logits(2), [open_row(Sampling(temperature=2.0, seed=3), [], "cpu"), open_row(Sampling(), [], "cpu")])
    assert torch.equal(state, torch.get_rng_state())


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
        ({"schema": 3}, "an object, not int"),
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
