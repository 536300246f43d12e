"""Joined rows have the outputs of rows alone, in every architecture whose attention is causal, within a window or
not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.models import varlen
from engine.models.loss import PickedHead
from engine.models.segments import Segments, can_use_segments, prove
from engine.models.varlen import Boundaries, Varlen
from engine.prep.batching import collate_flat
from engine.training import fast_paths
from tests.models.small import EXPERTS, SMALL, build

WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {}, "gemma2": {}, "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_oss": EXPERTS, "phi3": {}, "cohere2": {}, "olmo3": {}, "exaone4": {"sliding_window_pattern": 4},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2}, "starcoder2": {}, "ministral": {},
    "mixtral": EXPERTS,
}  # fmt: skip
FULL = ("llama", "qwen3", "gemma", "glm4", "gpt2", "gpt_neox", "opt", "phi", "granite", "stablelm", "smollm3")


def logits_alone(model: Any, rows: list[Any]) -> Any:
    head = PickedHead(model, Segments())
    with torch.no_grad():
        return torch.cat([head.logits(model, collate_flat([row]) | {"lengths": None}) for row in rows])


def logits_joined(model: Any, segments: Segments, rows: list[Any]) -> Any:
    with torch.no_grad():
        return PickedHead(model, segments).logits(model, collate_flat(rows))


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """torch's kernel computed in float32 as it is documented, since it has no CPU version. Counts its calls."""
    calls: list[int] = []

    def compute(query: Any, key: Any, value: Any, starts: Any, _: Any, longest: int, __: int, **named: Any) -> Any:
        calls.append(len(starts) - 1)
        left, right = named["window_size"]
        assert right == 0 and starts.dtype == torch.int32 and longest == int(starts.diff().max())
        assert named["enable_gqa"] == (query.shape[1] != key.shape[1])
        scale = named["scale"] or query.shape[-1] ** -0.5
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        places = torch.arange(len(query))
        row = torch.bucketize(places, starts[1:], right=True)
        distance = places[:, None] - places[None, :]
        seen = (row[:, None] == row[None, :]) & (distance >= 0) & ((distance <= left) | (left < 0))
        scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value.float()).to(query.dtype)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", compute)
    yield calls


@pytest.mark.parametrize("name", [*WINDOWED, *FULL])
def test_joined_rows_have_the_logits_of_rows_alone(name: str, rows: list[Any]) -> None:
    model = build(name, **WINDOWED.get(name, {"sliding_window": None}))
    alone = logits_alone(model, rows)
    segments = Segments()
    assert can_use_segments(model)
    segments.install(model)
    assert prove(model, segments) == ""
    torch.testing.assert_close(logits_joined(model, segments, rows), alone, atol=1e-5, rtol=1e-4)
    segments.uninstall()
    torch.testing.assert_close(logits_alone(model, rows), alone)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "qwen2", "llama"])
def test_one_call_a_layer_computes_all_rows(name: str, rows: list[Any], reference: list[int]) -> None:
    model = build(name, **WINDOWED.get(name, {}))
    alone = logits_alone(model, rows)
    segments = Segments(Varlen())
    segments.install(model)
    torch.testing.assert_close(logits_joined(model, segments, rows), alone, atol=1e-5, rtol=1e-4)
    assert reference == [len(rows)] * SMALL["num_hidden_layers"]
    loss = PickedHead(model, segments).logits(model, collate_flat(rows)).sum()
    loss.backward()
    assert all(weight.grad is None or bool(weight.grad.isfinite().all()) for weight in model.parameters())


def test_what_the_kernel_does_not_know_takes_the_plain_path(rows: list[Any], reference: list[int]) -> None:
    for name in ("gemma2", "gpt_oss"):  # capped scores, sinks
        model = build(name, **WINDOWED[name])
        alone = logits_alone(model, rows)
        segments = Segments(Varlen())
        segments.install(model)
        torch.testing.assert_close(logits_joined(model, segments, rows), alone, atol=1e-5, rtol=1e-4)
    model = build("llama", attention_dropout=0.1)
    segments = Segments(Varlen())
    segments.install(model.train())
    logits_joined(model, segments, rows)
    assert reference == []


def test_the_librarys_flash_attention_gets_the_rows_boundaries(
    rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = build("mistral")
    segments = Segments()
    segments.install(model)
    segments._before = "flash_attention_2"
    calls: list[dict[str, Any]] = []

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **named: Any) -> tuple[Any, None]:
        assert mask is None
        calls.append(named)
        return query.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash)
    logits_joined(model, segments, rows)
    assert len(calls) == SMALL["num_hidden_layers"]
    for named in calls:
        assert named["cu_seq_lens_q"].tolist() == named["cu_seq_lens_k"].tolist() == [0, 3, 20, 26, 51]
        assert (named["max_length_q"], named["max_length_k"], named["sliding_window"]) == (25, 25, 6)


def test_a_model_that_leaks_from_row_to_row_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    segments = Segments()
    segments.install(model)
    attend = segments._attend_by_row
    monkeypatch.setattr(segments, "_attend_by_row", lambda *given: attend(*given) + attend(*given).mean(1, True))
    assert "differ" in prove(model, segments)
    segments.uninstall()
    monkeypatch.setattr(segments, "_mask", lambda *_, **__: None)
    segments.install(model)
    assert "makes its own attention mask" in prove(model, segments)


def test_recurrent_and_chunked_layers_are_not_joined() -> None:
    for name, changes in {"mamba": {}, "llama4_text": EXPERTS, "bloom": {}}.items():
        from transformers import AutoConfig, AutoModelForCausalLM

        known = {key: value for key, value in SMALL.items() if name != "bloom" or key != "head_dim"}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**known, **changes}))
        assert not can_use_segments(model), name


def test_no_forward_pass_asks_the_device(rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks for joined rows in the positions, which waits for the device, unless there is a mask."""
    model = build("mistral")
    segments = Segments()
    segments.install(model)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: pytest.fail("a tensor was read"))
    monkeypatch.setattr(torch.Tensor, "item", lambda _: pytest.fail("a tensor was read"))
    assert logits_joined(model, segments, rows).shape[0] == 47


def test_boundaries_are_sent_once_a_batch(rows: list[Any], reference: list[int], monkeypatch: Any) -> None:
    made: list[Any] = []
    build_them = Boundaries.of
    monkeypatch.setattr(varlen.Boundaries, "of", lambda *given: made.append(given) or build_them(*given))
    model = build("llama")
    segments = Segments(Varlen())
    segments.install(model)
    logits_joined(model, segments, rows)
    logits_joined(model, segments, rows)
    assert len(made) == 2 and reference


@pytest.mark.parametrize("windowed", [False, True])
def test_the_kernels_trial_compares_outputs_and_gradients(windowed: bool, reference: list[int], bare_home: Any) -> None:
    from engine.models.trials import Trials

    trials = Trials(bare_home, "cpu", "a CPU")
    verdict = fast_paths.try_varlen(trials, "cpu", torch.float32, 4, 2, 16, windowed)
    assert verdict.difference < 1e-5 and verdict.speedup > 0 and reference
