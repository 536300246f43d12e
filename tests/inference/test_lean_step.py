"""The lean step computes what the model computes, with fewer operations, and is used only where it proves itself."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.inference import compiled_step, lean_step
from engine.inference.compiled_step import Compilation
from engine.inference.generate import stream
from engine.inference.lean_step import LeanStep, is_lean
from engine.inference.sampling import Sampling
from engine.inference.step_program import Held
from engine.models.trials import list_verdicts
from engine.protocol.home import Home
from tests.inference.test_compiled_step import PROMPT, Letters, reply
from tests.operations import Operations

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def make(family: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, sliding_window=None, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
            else:
                weight.add_(torch.randn_like(weight) / 4)
    return model


def repeat(captured: list[int]) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A capture that only counts; the same work is done anew, into the same tensor, as a graph would."""

    def capture(function: Callable[[], Any]) -> Callable[[], Any]:
        captured.append(1)
        result = function().clone()

        def replay() -> Any:
            return result.copy_(function())

        return replay

    return capture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model(family: str, dtype: torch.dtype) -> None:
    model = make(family, dtype)
    assert is_lean(model)
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        start = model(input_ids=ids, use_cache=True).past_key_values
        steps = [LeanStep(model), LeanStep(model, repeat([]))]
        rows = [Held(start, 64), Held(start, 64)]
        for token in (3, 70, 3, 41):
            given = torch.tensor([[token]])
            expected = model(input_ids=given, past_key_values=start, use_cache=True).logits[:, -1]
            tolerance = 1e-5 if dtype == torch.float32 else 0.03
            for step, held in zip(steps, rows, strict=True):
                found = step.step(given, held)
                assert float((found - expected).norm() / expected.norm()) < tolerance
        for held in rows:
            for ours, theirs in zip(held.to_cache().layers, start.layers, strict=True):
                torch.testing.assert_close(ours.keys, theirs.keys, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("captured", [False, True])
def test_greedy_tokens_are_the_same_through_swaps_and_growth(
    captured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_step, "_ROOM", 16)
    model, counted = make("llama"), []
    expected = reply(model, 125)
    compilation = Compilation(Home(tmp_path / "home"), "")
    step = LeanStep(model, repeat(counted) if captured else None)

    def at(count: int) -> None:
        if count == 10:
            compilation._program = step

    assert reply(model, 125, compilation.open, at) == expected
    assert len(counted) == 3 * captured, "of 64, 128 and 256 tokens"
    for _ in range(2):
        assert reply(model, 40, compilation.open) == expected[:40]
        assert len(counted) == 4 * captured, "which the next row uses too"
    other = make("llama", tie_word_embeddings=True)
    assert reply(other, 40, compilation.open) == reply(other, 40) and step.model is other


def test_two_rows_in_turns_do_not_share_a_captured_step() -> None:
    model, counted = make("llama"), []
    step = LeanStep(model, repeat(counted))
    with torch.inference_mode():
        starts = [
            model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values for ids in (PROMPT, PROMPT[::-1])
        ]
        rows = [Held(start, 64) for start in starts]
        for token in (3, 70, 41):
            for start, held in zip(starts, rows, strict=True):
                given = torch.tensor([[token]])
                expected = model(input_ids=given, past_key_values=start, use_cache=True).logits[:, -1]
                torch.testing.assert_close(step.step(given, held), expected, rtol=1e-4, atol=1e-4)
    assert len(counted) == 1


def test_rows_of_a_batch_stay_with_the_model(tmp_path: Path) -> None:
    model = make("llama")
    compilation = Compilation(Home(tmp_path / "home"), "")
    compilation._program = LeanStep(model)
    with torch.inference_mode():
        start = model(input_ids=torch.tensor([PROMPT, PROMPT[::-1]]), use_cache=True).past_key_values
        found = compilation.open(model, lambda: False)(torch.tensor([[3], [70]]), start)
    assert found.logits.shape[0] == 2 and not isinstance(found.past_key_values, Held)


def test_memory_is_not_taken_twice_nor_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, compilation = make("llama"), Compilation(Home(tmp_path / "home"), "")
    compilation._program = step = LeanStep(model, repeat([]))
    with torch.inference_mode():
        held = Held(model(input_ids=torch.tensor([PROMPT]), use_cache=True).past_key_values, 64)
        step.step(torch.tensor([[3]]), held)
    assert step._captured is not None and step._captured._tensors is held.tensors
    size = step._captured.size
    for limit, kept in ((size, True), (size - 1, False)):
        monkeypatch.setattr(lean_step, "KEPT_BYTES", limit)
        assert [*compilation.watch(model, iter([]))] == []
        assert (step._captured is not None) == kept
    expected, alive = reply(model, 20), weakref.ref(model)
    compilation.drop_weights()
    assert reply(model, 20, compilation.open) == expected and step.model is model
    compilation.drop_weights()
    del model
    gc.collect()
    assert alive() is None


def test_what_it_does_not_know_stays_with_the_model() -> None:
    assert not is_lean(make("gemma"))
    assert not is_lean(make("llama", hidden_act="gelu"))
    assert not is_lean(make("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    watched = make("llama")
    hook = watched.model.layers[0].register_forward_pre_hook(lambda *_: None)
    assert not is_lean(watched)
    hook.remove()
    assert is_lean(watched)
    windowed = make("mistral")
    windowed.config.sliding_window = 4
    assert not compiled_step._is_leanable(windowed)


def test_operations_of_a_token() -> None:
    """Each is a kernel that a device's host has to start."""
    model = make("llama")
    given = torch.tensor([[3]])
    with torch.inference_mode():
        start = model(input_ids=torch.tensor([PROMPT]), use_cache=True).past_key_values
        held, step = Held(start, 64), LeanStep(model)
        with Operations() as ours:
            step.step(given, held)
        with Operations() as theirs:
            model(input_ids=given, past_key_values=start, use_cache=True)
    assert 2 * sum(ours.counts.values()) < 90 + sum(theirs.counts.values())
    assert sum(ours.counts.values()) < 130, ours.counts.most_common()


class _Slow(LeanStep):
    def step(self, ids: Any, held: Held) -> Any:
        time.sleep(0.02)
        return super().step(ids, held)


class _Wrong(LeanStep):
    def step(self, ids: Any, held: Held) -> Any:
        return super().step(ids, held) * 1.1


class _Raising(LeanStep):
    def step(self, ids: Any, held: Held) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("kind", "said"),
    [(_Slow, "only 0"), (_Wrong, "differ by 0.1"), (_Raising, "not permitted"), (LeanStep, "times as fast")],
)
def test_it_is_tried_before_it_is_used(kind: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_step, "make_lean_step", kind)
    monkeypatch.delenv("COCKPIT_COMPILE", raising=False)
    if kind is LeanStep:
        monkeypatch.setattr(compiled_step, "_FASTER", 0.01)  # how fast it is here is not what this is about
    home, told, model = Home(tmp_path / "home").create(), [], make("llama")
    for _ in range(2):
        compilation = Compilation(home, "", told.append)
        expected = reply(model, 40)
        pieces = [
            *compilation.watch(model, stream(model, Letters(), PROMPT, Sampling(40), (), open_forward=compilation.open))
        ]
        assert pieces[-1].reply is not None and pieces[-1].reply.ids == expected
        compilation.wait()
        assert (compilation.find(model) is not None) == (kind is LeanStep)
        assert len(told) == 1 and said in told[0], told
    [[verdict]] = list_verdicts(home).values()
    assert verdict.name.startswith("lean step llama") and verdict.used == (kind is LeanStep)
    monkeypatch.setenv("COCKPIT_COMPILE", "0")
    assert not compiled_step.is_usable(model)
