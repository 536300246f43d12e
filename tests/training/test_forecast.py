"""Forecasts: a step on tensors without content takes the memory of the same step, computed with weights."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.config import forecasts
from engine.config.profile import parse
from engine.models import loss
from engine.models.base import load_tokenizer
from engine.protocol.messages import ProblemError
from engine.training.forecast import estimate, simulated, terms
from engine.training.forecast import trace as tracing
from engine.training.forecast.hosts import Host
from engine.training.forecast.skeleton import packed_bytes
from engine.training.forecast.trace import Trace, state_bytes, trace
from engine.training.forecast.tracker import MemoryTracker
from tests.training.harness import PROFILE, make_model, prepare

LONG = pytest.mark.skipif("COCKPIT_LONG_TESTS" not in os.environ, reason="further combinations: COCKPIT_LONG_TESTS=1")
PEAKS = ("weights", "trained", "gradients", "states", "step", "reduction", "optimizer", "evaluation")


def measure(
    prepared: dict[str, Any],
    *changes: str,
    fake: bool = True,
    kind: str = "cpu",
    compute: str = "float32",
    world: int = 1,
) -> Trace:
    profile = parse(PROFILE.format(base=prepared["base"]), "test", Path("/"), changes)
    tokenizer = load_tokenizer(prepared["base"], False, None)
    device = simulated.SimulatedDevice("cpu", getattr(torch, compute), "test", kind)
    return trace(profile, prepared, tokenizer, device, world=world, fake=fake)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose weights count beside the rest of a step."""
    folder = tmp_path_factory.mktemp("wide")
    return prepare(folder, make_model(folder / "model", 256))


def assert_same(found: Trace, real: Trace, rel: float = 0.01) -> None:
    assert {name: getattr(found, name) for name in PEAKS if name != "weights"} == pytest.approx(
        {name: getattr(real, name) for name in PEAKS if name != "weights"}, rel=rel
    )
    assert found.flops == real.flops


CASES = [
    ("adapter={kind: none}",),
    ("adapter={kind: none}", "training.gradient_checkpointing=true", "training.accumulation=2"),
    ("adapter={kind: none}", "training.optimizer=adafactor", "training.ema={}"),
    ("adapter={kind: none}", "method.kind=pretrain", "model.dtype=bfloat16"),
    ("adapter={kind: lora}",),
    ("adapter={kind: lora, dropout: 0.1}", "training.gradient_checkpointing=true"),
    ("adapter={kind: lora, dtype: bfloat16}", "model.dtype=bfloat16", "training.neftune=5"),
    ("adapter={kind: dora}", "model.dtype=bfloat16"),
    ("adapter={kind: ia3}",),
    ("adapter={kind: prompt}",),
    ("training.optimizations=false",),
    ("model.attention=eager",),
]


@pytest.mark.parametrize("changes", [pytest.param(case, marks=LONG if at % 3 else ()) for at, case in enumerate(CASES)])
def test_a_step_without_content_takes_the_memory_of_a_real_one(changes, wide):
    compute = "bfloat16" if "model.dtype=bfloat16" in changes else "float32"
    found, real = (measure(wide, *changes, fake=fake, compute=compute) for fake in (True, False))
    assert_same(found, real)
    assert found.weights == pytest.approx(real.weights, rel=0.01)


CAPPED = [CASES[at] for at in (0, 1, 2, 4, 5, 8)]
"""Some of these that a CPU computes in the dtype that a card would."""


QUICK = {("dpo", "lora", "true"), ("kto", "lora", "false")}
METHODS = [
    pytest.param(method, adapter, again, marks=() if (method, adapter, again) in QUICK else LONG)
    for method in ("dpo", "reward", "orpo", "kto")
    for adapter in ("none", "lora")
    for again in ("false", "true")
]


@pytest.mark.parametrize(("method", "adapter", "checkpointing"), METHODS)
def test_so_it_does_with_every_method(method, adapter, checkpointing, sets):
    changes = (
        f"method={{kind: {method}}}",
        f"adapter={{kind: {adapter}}}",
        f"training.gradient_checkpointing={checkpointing}",
    )
    found, real = (measure(sets[method], *changes, fake=fake) for fake in (True, False))
    # On a model of a megabyte, the tables of positions of the reference count: a real model's are touched later.
    assert_same(found, real, rel=0.03 if method in ("dpo", "kto") and adapter == "none" else 0.01)


@pytest.fixture(scope="module")
def tied(wide: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model in bfloat16 whose embedding is its output layer, too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(wide["base"], folder)
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size, config.tie_word_embeddings = 5000, True
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return {**wide, "base": str(folder)}


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_tied_weights_stay_tied_also_where_they_are_cast(adapter, tied):
    changes = (f"adapter={{kind: {adapter}}}", "model.dtype=bfloat16")
    found, real = (measure(tied, *changes, fake=fake) for fake in (True, False))
    assert_same(found, real)
    assert (found.whole, found.weights) == (real.whole, pytest.approx(real.weights, rel=0.01))


def test_more_rows_longer_rows_and_a_higher_rank_take_more(wide):
    def peak(*changes: str) -> int:
        return measure(wide, *changes).step

    assert peak("training.micro_batch=1") < peak("training.micro_batch=4")
    assert peak("adapter.rank=2") < peak("adapter.rank=32")
    short, long = (measure(wide, "training.micro_batch=1", f"training.tokens_per_batch={n}") for n in (40, 110))
    assert short.tokens < long.tokens
    assert short.step < long.step
    assert peak("training.gradient_checkpointing=true") < peak()


def test_strategies_divide_what_they_say(wide):
    full = ("adapter={kind: none}",)
    ranks = {
        name: measure(wide, *full, f"launch.strategy={name}", "launch.processes=4", world=4)
        for name in ("ddp", "zero1", "zero2", "fsdp")
    }
    whole = ranks["ddp"]
    assert ranks["zero1"].states == pytest.approx(whole.states / 4, rel=0.2)  # weights are not split
    assert ranks["zero1"].gradients == whole.gradients
    for name in ("zero2", "fsdp"):
        assert ranks[name].states == pytest.approx(whole.states / 4, rel=0.02)
        assert ranks[name].gradients == pytest.approx(whole.gradients / 4, rel=0.02)
        assert ranks[name].trained == pytest.approx(whole.trained / 4, rel=0.02)
    assert whole.step > max(ranks["zero1"].step, ranks["fsdp"].step)
    assert ranks["zero2"].step >= ranks["fsdp"].step
    assert whole.reduction > measure(wide, *full).reduction  # buckets


def test_packed_weights_are_counted_as_bitsandbytes_keeps_them():
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(512, 384)
    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    parts = (packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    real = sum(part.numel() * part.element_size() for part in parts)
    assert packed_bytes((512, 384), "nf4") == pytest.approx(real, rel=0.001)
    assert packed_bytes((512, 384), "int8") == 512 * 384 + 4 * 512


def test_a_packed_base_takes_less_but_unpacks_in_each_pass(wide):
    plain, packed, eight = (
        measure(wide, "model.dtype=bfloat16", f"model.quantization={kind}", kind="cuda", compute="bfloat16")
        for kind in ("none", "nf4", "int8")
    )
    assert packed.weights < eight.weights < plain.weights
    frozen, again = plain.weights - plain.trained, packed.weights - packed.trained
    assert 0.25 * frozen < again < 0.35 * frozen  # the embeddings stay in 16 bits
    assert packed.step > packed.weights + packed.gradients + packed.states


def test_a_weight_of_experts_stays_in_16_bits_unless_it_is_packed():
    assert packed_bytes((8, 64, 32), "nf4") < 8 * 64 * 32 * 2 / 3


def test_states_in_8_bits(wide):
    assert state_bytes(1024, "adamw_8bit") == 4096  # too small
    assert state_bytes(1 << 20, "adamw_8bit") == (1 << 20) + (1 << 14)
    assert state_bytes(1 << 20, "adamw_8bit", embedding=True) == 4 << 20
    full = ("adapter={kind: none}",)
    whole, eight = (measure(wide, *full, f"training.optimizer={name}", kind="cuda") for name in ("adamw", "adamw_8bit"))
    assert eight.states < whole.states / 2
    assert eight.step < whole.step


def test_the_tracker_frees_what_is_dropped_and_counts_views_once():
    with MemoryTracker(fake=False) as tracker:
        first = torch.zeros(1000)
        view = first[10:]
        assert tracker.live == 4000
        second = first + 1
        assert (tracker.live, tracker.peak) == (8000, 8000)
        del second
        assert (tracker.live, tracker.peak) == (4000, 8000)
        view.untyped_storage().resize_(0)
        assert tracker.live == 0


def test_terms_of_shapes(wide):
    config = SimpleNamespace(num_attention_heads=8, head_dim=64, hidden_size=512)
    assert terms.attention_workspace(config, 100) == 4 * 8 * 100 * 65
    assert terms.context("cpu") == 0
    assert terms.slack("cpu", 10**9) > 0
    assert terms.context("cuda") > 0
    assert terms.slack("cuda", 10**9) > 0
    total, largest = terms.weight_files(wide["base"])
    assert total == largest == pytest.approx(1_213_696 * 4, rel=0.001)


def _profile(*changes: str) -> Any:
    return parse(PROFILE.format(base="a/b"), "test", Path("/"), changes)


def test_disk_for_the_checkpoints_that_are_kept():
    traced = Trace(whole={"weights": 1000, "trained": 100})
    adapter = _profile("checkpoint.keep=2")
    assert terms.disk(adapter, traced, 800) == {"checkpoints": 3 * (100 * 4 + 800)}
    full = _profile("adapter={kind: none}", "model.dtype=bfloat16", "checkpoint.keep=1", "checkpoint.output=/tmp/out")
    traced = Trace(whole={"weights": 1000, "trained": 1000})
    assert terms.disk(full, traced, 8000) == {"checkpoints": 2 * (2000 + 8000 + 4000), "output": 2000}


def test_a_paged_optimizer_keeps_its_states_on_the_host():
    traced = Trace(states=7, averages=3)
    assert terms.paged_states(_profile("training.optimizer=paged_adamw_8bit", "adapter={kind: none}"), traced) == 4
    assert terms.paged_states(_profile(), traced) == 0


def test_offload_takes_weights_and_states_from_the_card():
    settings = ("launch.strategy=fsdp", "launch.processes=2", "launch.offload=cpu")
    traced = Trace(weights=50, states=40, gradients=20, step=120, optimizer=115, largest=5, micro_batches=2, flops=1)
    given = estimate.Given(None, {"base": None}, None, True, 0)  # type: ignore[arg-type]
    host = Host("cuda", "a card", 2, 10**9, None)

    def count(*changes: str) -> int:
        profile = _profile(*changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimate, "read_config", lambda *_: SimpleNamespace(num_attention_heads=0, hidden_size=0))
            listed = estimate._list_device_terms(profile, host, traced, given, sharded=True)
        return sum(term["bytes"] for term in listed if term["name"] not in ("context", "allocator slack"))

    assert (count(*settings[:2]), count(*settings)) == (120, 10)


@pytest.mark.parametrize("kind", [pytest.param("nf4", marks=LONG), "int8"])
def test_packed_weights_stay_packed_where_they_are_divided_and_on_a_cpu(kind, wide):
    settings = ("model.dtype=bfloat16", f"model.quantization={kind}")
    alone = measure(wide, *settings, kind="cuda", compute="bfloat16")
    shares = measure(
        wide, *settings, "launch.strategy=fsdp", "launch.processes=2", kind="cuda", compute="bfloat16", world=2
    )
    assert shares.weights < 0.6 * alone.weights
    plain, packed = (measure(wide, "model.dtype=bfloat16", *more) for more in ((), (f"model.quantization={kind}",)))
    if kind == "int8":  # a CPU's NF4 weights may be unpacked once
        assert packed.weights < 0.6 * plain.weights


def test_made_up_rows_need_no_conversations_and_enough_of_them(wide, tmp_path):
    changes = ("training.micro_batch=1", "training.tokens_per_batch=640", "training.accumulation=1000000")
    made = simulated.write_rows(_profile(*changes), tmp_path, 2)
    from datasets import load_from_disk

    assert len(load_from_disk(made["train"])) == 2 * 10 * 2
    with pytest.raises(ProblemError, match="too many to make"):
        simulated.write_rows(_profile("training.micro_batch=100000000"), tmp_path)
    profile = _profile("evaluation.task=triples", "data.split={validation: 0.2}")
    job = simulated.make_job(profile, {"validation_rows": None}, None, None, None, tmp_path)  # type: ignore[arg-type]
    assert job.profile.evaluation.task is None


@pytest.mark.parametrize("kind", ["grpo", pytest.param("rloo", marks=LONG)])
def test_online_methods_are_traced_with_a_reference_and_many_logits(kind, wide, tmp_path, monkeypatch):
    monkeypatch.setattr(loss, "LARGEST", 100)
    reward = "reward: {task: triples, metric: triples_f1}"
    changes = f"method={{kind: {kind}, {reward}, max_new_tokens: 20, generations: 2, beta: 0.1}}"
    made = simulated.write_rows(_profile(changes, "training.micro_batch=2"), tmp_path)
    made |= {"lock": {"eos_token_ids": [1]}, "base": wide["base"], "tokenizer": None}
    found = measure(made, changes, "training.micro_batch=2", kind="cuda")
    assert found.generation > found.weights


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "grpo"])
def test_made_up_rows_are_as_long_as_the_profile_allows(kind):
    method = f"method={{kind: {kind}}}"
    if kind == "grpo":
        method = "method={kind: grpo, reward: {task: triples, metric: triples_f1}, max_new_tokens: 20, generations: 4}"
    row = simulated.make_row(_profile(method))
    assert {
        "sft": lambda: len(row["input_ids"]),
        "dpo": lambda: len(row["prompt_ids"]) + len(row["chosen_ids"]),
        "kto": lambda: len(row["prompt_ids"]) + len(row["completion_ids"]),
        "grpo": lambda: len(row["prompt_ids"]) + 20,
    }[kind]() == 64


def test_a_trace_leaves_generators_and_libraries_as_they_were(wide):
    from transformers import masking_utils

    before = torch.get_rng_state(), torch.nn.Module._apply, torch.nn.init.zeros_, masking_utils.is_tracing
    found = measure(wide)
    after = torch.get_rng_state(), torch.nn.Module._apply, torch.nn.init.zeros_, masking_utils.is_tracing
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    again = measure(wide)
    assert {name: getattr(again, name) for name in PEAKS} == pytest.approx(
        {name: getattr(found, name) for name in PEAKS}, rel=0.001
    )


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector, whose moment would decide which tensors of dead cycles count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Capped(MemoryTracker):
    """A card of the test: it refuses what would make all live tensors take more than `cap` bytes."""

    cap = 0
    refused = False
    """The loop catches the error of a pass, and would go on with a smaller micro-batch."""

    def _change(self, by: int) -> None:
        super()._change(by)
        if self.live > Capped.cap:
            Capped.refused = True
            raise torch.OutOfMemoryError("a cap of the test")


def run_on_card(prepared: dict[str, Any], changes: tuple[str, ...], room: int) -> bool:
    """Whether two steps really run on a card with so much memory; in the second there are the optimiser's states."""

    def step_twice(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        step(self, *arguments)

    step, Capped.cap, Capped.refused = tracing._Tracing._step, room - terms.CONTEXT, False
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(torch.OutOfMemoryError):
        patch.setattr(tracing, "MemoryTracker", Capped)
        patch.setattr(tracing._Tracing, "_step", step_twice)
        measure(prepared, *changes, fake=False)
    return not Capped.refused


@pytest.mark.slow
def test_on_a_card_of_the_test_what_is_safe_runs_and_what_is_impossible_fails(
    wide, bare_home, monkeypatch, uncollected
):
    """The verdict is that of a forecast with its terms and its error, on the smallest card that it calls safe and the
    largest that it calls too small. The context is less than a real card's, beside which the small model would be
    nothing."""
    monkeypatch.setattr(terms, "CONTEXT", 10**5)
    given = estimate.Given(bare_home, wide, load_tokenizer(wide["base"], False, None), True, 0)
    failed = []
    for changes in CAPPED:
        profile = parse(PROFILE.format(base=wide["base"]), "test", Path("/"), changes)
        found = estimate.estimate(profile, Host("cuda", "a card", 1, None, None), given)
        error = found["device_bytes"] * found["error_percent"] / 100
        safe, small = int(found["device_bytes"] + error) + 1, int(found["device_bytes"] - error) - 1
        verdicts = [forecasts.judge_all(found, room, None) for room in (safe, safe - 2, small + 2, small)]
        assert verdicts == ["fits", "near", "near", "too_large"]
        assert run_on_card(wide, changes, safe), changes
        failed.append(not run_on_card(wide, changes, small))
    assert sum(failed) >= 0.9 * len(CAPPED), failed
