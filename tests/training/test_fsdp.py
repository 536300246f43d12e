"""`launch.strategy: fsdp`: the numbers of one process, with weights, gradients and optimiser states divided among the
ranks. More than 400 lines: one table of settings is run by the ranks of one start."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.config.overrides import load_reference
from engine.config.profile import ProfileError, parse
from engine.options.tables import STRATEGIES
from engine.protocol.home import Home
from engine.protocol.journal import BadBatch, Evaluation, Ledger, Start, Warn
from engine.protocol.messages import ProblemError
from engine.training.combinations import render_strategies
from engine.training.exhausted import apply_notes, leave_note
from engine.training.online.checks import describe_reward_model
from engine.training.online.options import OnlineOptions, RewardOptions
from engine.training.parallel import fsdp
from engine.training.parallel.lockstep import in_step
from engine.training.parallel.skeleton import share_structure
from engine.training.ranks import Ranks
from tests.training import online, warm
from tests.training.harness import PROFILE, Supervised
from tests.training.here import Here
from tests.training.preferences import make_scorer

LOSSES = ("train/loss", "train/grad_norm", "train/learning_rate")
FULL = ("adapter={kind: none}", "training.learning_rate=1e-3", "training.max_grad_norm=0.5")
SHARDED = "launch={processes: 2, strategy: fsdp}"
ALIKE = ("training.epochs=2", "checkpoint.every_steps=4", "checkpoint.keep=20", "evaluation.every_steps=4")


def compare(run: Supervised, whole: Supervised, *, evaluations: bool = True, tolerance: float = 1e-4) -> None:
    for name in LOSSES:
        ours, theirs = run.series(name), whole.series(name)
        assert ours.keys() == theirs.keys() and ours, name
        assert ours == pytest.approx(theirs, rel=tolerance), name
    if not evaluations:
        return
    ours, theirs = (
        {entry.step: entry.values["eval/loss"] for entry in each.entries(Evaluation)} for each in (run, whole)
    )
    assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("fsdp", ()),
        ("fsdp", FULL),
        ("zero2", FULL),
        ("fsdp", (*FULL, "method={kind: pretrain}", "model.init=config")),
    ],
    ids=["lora", "full", "zero2", "pretrain"],
)
def test_two_ranks_compute_what_one_process_does(
    start_run: Callable[..., Supervised], strategy: str, changes: tuple[str, ...]
) -> None:
    from safetensors.torch import load_file

    whole = start_run("one", *changes, *ALIKE)
    whole.train()
    run = start_run("two", *changes, *ALIKE, "training.micro_batch=2", f"launch={{processes: 2, strategy: {strategy}}}")
    run.train(processes=2)
    compare(run, whole)
    assert run.run.checkpoint_steps() == whole.run.checkpoint_steps()
    for step in whole.run.checkpoint_steps():
        ours, theirs = (next(each.run.checkpoint(step).glob("*.safetensors")) for each in (run, whole))
        found, wanted = load_file(ours), load_file(theirs)
        assert ours.name == theirs.name and found.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("method", "full"), [("dpo", True), ("kto", False), ("reward", False)], ids=["dpo-full", "kto", "reward"]
)
def test_preference_methods(
    start_run: Callable[..., Supervised], sets: dict[str, dict[str, Any]], method: str, full: bool
) -> None:
    changes = (
        *(FULL if full else ()),
        f"method={{kind: {method}}}",
        "training.max_steps=5",
        "evaluation.every_steps=2",
    )
    whole = start_run("one", *changes, prepared=sets[method])
    whole.train()
    run = start_run("two", *changes, "training.micro_batch=2", SHARDED, prepared=sets[method])
    run.train(processes=2)
    # KTO estimates its reference point in an evaluation from the rows of each micro-batch.
    compare(run, whole, evaluations=method != "kto")


@pytest.mark.parametrize(
    "changes",
    [
        ("model.quantization=nf4", "training.optimizations=false", "training.gradient_checkpointing=true"),
        ("model.quantization=int8",),
        ("adapter={kind: dora}", "training.ema={decay: 0.5}"),
        ("adapter={kind: oft}",),
        (*FULL, "training.gradient_checkpointing=true", "training.ema={decay: 0.5}", "launch.offload=cpu"),
        (*FULL, "training.optimizer=muon"),
        ("training.accumulation=2", "evaluation.probes=[w1 w2, w3]"),
    ],
    ids=lambda changes: " ".join(changes)[-60:],
)
def test_settings(start_run: Callable[..., Supervised], changes: tuple[str, ...]) -> None:
    brief = ("training.max_steps=6", "evaluation.every_steps=2", "checkpoint.every_steps=4")
    whole = start_run("one", *(each for each in changes if not each.startswith("launch.")), *brief)
    whole.train()
    run = start_run("two", *changes, *brief, "training.micro_batch=2", "launch.processes=2", "launch.strategy=fsdp")
    run.train(processes=2)
    compare(run, whole)


@pytest.mark.slow
def test_while_it_is_loaded_the_ranks_together_hold_a_model_and_a_share_of_it(tmp_path: Path) -> None:
    """Converted as it is read, so that rank 0 has it in memory and not in pages of a file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=1408, num_hidden_layers=32, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    size = sum(weight.numel() * 4 for weight in model.parameters())
    layer = sum(weight.numel() * 4 for weight in model.model.layers[0].parameters())
    model.bfloat16().save_pretrained(tmp_path / "base")
    worker = ["tests.training.loading", str(tmp_path / "base"), str(tmp_path)]
    ranks = warm.start(worker, 4, os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, tmp_path / "log")
    assert ranks.wait() == 0, (tmp_path / "log").read_text()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert sum(each["held"] for each in found) == size
    for each in found[1:]:
        assert max(memory for _, memory in each["points"]) < each["held"] + 3 * layer
    now, together = [0] * 4, []
    points = [(moment, rank, memory) for rank, each in enumerate(found) for moment, memory in each["points"]]
    for _, place, memory in sorted(points):
        now[place] = memory
        together.append(sum(now))
    assert size < max(together) < size + size / 4, [max(together) / size, layer / size]


def test_resume(start_run: Callable[..., Supervised], tmp_path: Path, prepared: dict[str, Any]) -> None:
    whole = start_run("one", *FULL, *ALIKE, "training.ema={decay: 0.9}")
    whole.train()
    changes = (*FULL, *ALIKE, "training.ema={decay: 0.9}", "training.micro_batch=2", SHARDED)
    run = start_run("two", *changes)
    run.start(processes=2, fault="boundary:6")
    assert run.wait() != 0 and run.run.checkpoint_steps() == [4]
    run.train(processes=2)
    assert [(entry.step, entry.resumed) for entry in run.entries(Start)] == [(0, ""), (4, "exact")]
    compare(run, whole)
    # And from there with other ranks and another strategy.
    for ranks, strategy in ((4, "fsdp"), (2, "ddp"), (1, "ddp"), (2, "zero1")):
        other = start_run(f"{strategy}-{ranks}", *changes, f"launch={{processes: {ranks}, strategy: {strategy}}}")
        shutil.copytree(run.run.checkpoint(8), other.run.checkpoint(8))
        shutil.copy(run.run.events, other.run.events)
        other.attempts = 2
        other.train(processes=ranks)
        start = other.entries(Start)[-1]
        assert (start.step, start.processes) == (8, ranks)
        assert "read back differs" not in start.resumed, start.resumed
        assert start.resumed.startswith("not exact: " + (f"ranks 2 → {ranks}" if ranks != 2 else "launch.strategy"))
        compare(other, whole)
    # Back from an unsharded strategy.
    back = start_run("back", *changes)
    shutil.copytree(whole.run.checkpoint(8), back.run.checkpoint(8))
    shutil.copy(whole.run.events, back.run.events)
    back.attempts = 2
    back.train(processes=2)
    compare(back, whole)


def test_a_rank_that_runs_out_of_memory_ends_the_attempt_and_the_next_has_smaller_batches(
    start_run: Callable[..., Supervised],
) -> None:
    changes = ("training.micro_batch=4", "training.max_steps=5", "checkpoint.every_steps=2", "training.rehearsal=false")
    whole = start_run("one", *changes, "training.micro_batch=8", "training.accumulation=1")
    whole.train()
    run = start_run("two", *changes, SHARDED)
    for attempt in (1, 2):
        run.start(processes=2, fault="oom:35:1")
        assert run.wait() != 0
        note = json.loads(run.run.exhausted(attempt).read_text())
        assert note["rank"] == 1 and "more than 35 tokens" in note["cause"]
        assert note["training.micro_batch"] == 4 / attempt
    run.start(processes=2, fault="oom:35:1")
    assert run.wait() == 0, run.log()
    # There was no checkpoint, so the third attempt began with the profile's micro-batch and halved it twice.
    cuts = [entry.message for entry in run.entries(Warn) if entry.code == "memory.batch_cut"][-2:]
    assert "training.micro_batch 4 → 2 and training.accumulation 1 → 2" in cuts[0]
    assert "training.micro_batch 2 → 1 and training.accumulation 2 → 4" in cuts[1]
    compare(run, whole)
    assert not run.run.exhausted(3).exists()


@pytest.mark.slow
def test_online(start_run: Callable[..., Supervised], tiny: Path, tmp_path: Path) -> None:
    """Sampling depends on the rank, so the numbers are those of `ddp`."""
    scorer = make_scorer(tiny, tmp_path / "scorer")
    method = OnlineOptions(kind="grpo", reward=RewardOptions(run=str(scorer)))
    prompts = online.prepare(tmp_path, tiny, **describe_reward_model(method, tmp_path, Home(tmp_path)))
    runs = []
    for strategy in ("ddp", "fsdp"):
        run = start_run(
            f"grpo-{strategy}",
            *FULL,
            f"method={{kind: grpo, beta: 0.1, generations: 4, max_new_tokens: 8, reward: {{run: {scorer}}}}}",
            "training={epochs: 1, micro_batch: 4, threads: 1, max_steps: 3}",
            "evaluation={every_steps: 2, samples: 4}",
            "checkpoint.best_by=eval/reward",
            f"launch={{processes: 2, strategy: {strategy}}}",
            prepared=prompts,
        )
        run.train(processes=2)
        runs.append(run)
    for name in ("train/loss", "train/grad_norm", "train/reward", "train/completion_length"):
        assert runs[1].series(name) == pytest.approx(runs[0].series(name), rel=1e-4, abs=1e-6), name


def test_hot_chat(start_run: Callable[..., Supervised]) -> None:
    """The ranks answer together with the weights of the step, and train on as if nothing had been asked."""
    whole = start_run("one", *FULL, *ALIKE, "training.ema={decay: 0.5}", "training.max_steps=12")
    whole.train()
    run = start_run(
        "two", *FULL, *ALIKE, "training.ema={decay: 0.5}", "training.max_steps=12", "training.micro_batch=2", SHARDED
    )
    run.start(processes=2)
    message = [{"role": "user", "content": "w1 w2"}]
    answer = run.ask("generate", messages=message, request="r", max_new_tokens=6)
    assert answer.problem is None and 0 < answer.result["tokens"] <= 6
    run.ask("pause")
    paused = run.ask("generate", messages=message, request="p", max_new_tokens=6)
    assert paused.problem is None and 0 < paused.result["tokens"] <= 6
    run.ask("continue")
    assert run.wait() == 0, run.log()
    compare(run, whole)


def test_a_shard_that_does_not_fit_pauses_all_ranks(start_run: Callable[..., Supervised]) -> None:
    run = start_run(
        "full", *FULL, "training.max_steps=4", "training.rehearsal=false", "training.micro_batch=2", SHARDED
    )
    run.start(processes=2, limit=50_000)  # bytes a file of rank 0
    run.until(lambda: any(entry.name == "pause" and "disk low" in entry.new for entry in run.entries(Ledger)))
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run.ask("continue")
    assert run.wait() == 0, run.log()
    assert run.run.checkpoint_steps() == [4]
    assert not list(run.run.checkpoints.glob(".*"))


def test_a_batch_is_held_back_on_all_ranks(start_run: Callable[..., Supervised]) -> None:
    run = start_run(
        "held", *FULL, "training.max_steps=8", "training.learning_rate=1e9", "training.scheduler=constant",
        "training.warmup=0", "training.micro_batch=2", "evaluation.every_steps=50", SHARDED,
    )  # fmt: skip
    run.start(processes=2)
    run.until(lambda: run.entries(BadBatch))
    (held,) = run.entries(BadBatch)
    assert held.code in ("pause.loss_not_finite", "pause.gradient_not_finite") and held.total == 4
    assert held.rows[0].loss is None
    run.ask("stop")
    assert run.wait() == 0, run.log()


@pytest.mark.slow
def test_a_held_batch_leaves_nothing_behind(start_run: Callable[..., Supervised]) -> None:
    """Its rows are measured in passes after the backward pass; then its gradients are dropped."""
    flat = ("training.learning_rate=1e-5", "training.epochs=4", "limits.loss_spike=1.003")
    changes = (*FULL, *flat, "evaluation.every_steps=100")
    runs = []
    for name, processes, more in (
        ("one", 1, ()),
        ("two", 2, ("training.micro_batch=2", "launch={processes: 2, strategy: zero2}")),
    ):
        run = start_run(name, *changes, *more)
        run.start(processes=processes)
        held = 0
        while run.process.poll() is None:
            run._hear()
            if len(run.entries(BadBatch)) > held:
                held += 1
                run.ask("continue", choice="skip" if held == 1 else "")
        assert run.process.returncode == 0, run.log()
        assert held
        runs.append(run)
    assert [entry.step for entry in runs[0].entries(BadBatch)] == [entry.step for entry in runs[1].entries(BadBatch)]
    compare(runs[1], runs[0], evaluations=False)


def test_a_pass_that_is_left_in_the_middle_is_an_error() -> None:
    class Model(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, broken: bool) -> None:
            if broken:
                raise ValueError

    model = Model()
    with in_step([model], Ranks(), None):
        model(False)
    with pytest.raises(RuntimeError, match="left in the middle"), in_step([model], Ranks(), None), suppress(ValueError):
        model(True)


# ── what does not go with it ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("adapter={kind: prefix}", "adapter.kind"),
        ("training.optimizer=adafactor", "training.optimizer"),
        ("training.optimizer=adamw_8bit", "training.optimizer"),
        ("model.dtype=float16", "model.dtype"),
        ("training.compile=true", "training.compile"),
    ],
)
@pytest.mark.parametrize("strategy", ["fsdp", "zero2"])
def test_refusals(prepared: dict[str, Any], change: str, key: str, strategy: str) -> None:
    text = PROFILE.format(base=prepared["base"])
    with pytest.raises(ProfileError, match=rf"{re.escape(key)}:? .*launch.strategy"):
        parse(text, "test", Path("/"), (change, f"launch={{processes: 2, strategy: {strategy}}}"))
    parse(text, "test", Path("/"), (change, "launch={processes: 2, strategy: zero1}"))


def test_offload_needs_shares(prepared: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match=r"launch\.offload: is for launch.strategy fsdp or zero2"):
        parse(PROFILE.format(base=prepared["base"]), "test", Path("/"), ("launch={processes: 2, offload: cpu}",))


def test_docs_have_the_table_of_strategies() -> None:
    assert render_strategies() in (Path(__file__).parents[2] / "docs" / "training.md").read_text()


@pytest.mark.parametrize("name", ["fsdp", "zero2", "zero1", "ddp"])
def test_the_table_and_the_classes_agree(name: str) -> None:
    assert load_reference(STRATEGIES[name].reference).sharded == STRATEGIES[name].sharded


def test_a_note_keeps_the_longest_row_in_one_piece(tmp_path: Path, prepared: dict[str, Any]) -> None:
    """Below it, a smaller token budget changes nothing."""
    run = Here(tmp_path, "run", prepared)
    text = PROFILE.format(base=prepared["base"]).replace("micro_batch: 4", "tokens_per_batch: 100")
    profile = parse(text, "test", Path("/"))

    def job(attempt: int) -> Any:
        told: list[Any] = []
        reporter = SimpleNamespace(warn=lambda **warning: told.append(warning), write=lambda entry: None)
        return SimpleNamespace(
            run=run.run, attempt=attempt, profile=profile, ranks=Ranks(), longest_row=30, replayed={},
            reporter=reporter, told=told,
        )  # fmt: skip

    for attempt, budget in ((1, 50), (2, 30)):
        failed = job(attempt)
        apply_notes(failed, 0)
        leave_note(failed, torch.OutOfMemoryError("no room"))
        again = job(attempt + 1)
        apply_notes(again, 0)
        assert again.profile.training.tokens_per_batch == budget
        assert len(again.told) == attempt
    leave_note(again, torch.OutOfMemoryError("no room"))
    assert not run.run.exhausted(3).exists()


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)


class Divisible(torch.nn.Module):
    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(), Layer()])


def test_what_cannot_be_divided_is_named() -> None:
    model = Divisible()
    layers = fsdp.find_layers(model)
    assert layers == [*model.layers]
    fsdp._check_shared(model, layers)
    for layer in layers:
        fsdp._check_dtypes(layer)
        fsdp._check_experts(layer)
    layers[0].inner.bias.data = layers[0].inner.bias.data.bfloat16()
    with pytest.raises(ProblemError, match=r"torch\.bfloat16 and torch\.float32"):
        fsdp._check_dtypes(layers[0])
    layers[0].experts = torch.nn.ModuleList()
    with pytest.raises(ProblemError, match="hangs when an expert gets no token"):
        fsdp._check_experts(layers[0])
    for shared in ("module", "weight"):
        model = Divisible()
        model.head = model.layers[1].inner if shared == "module" else torch.nn.Linear(2, 2)
        model.head.weight = model.layers[1].inner.weight
        with pytest.raises(ProblemError, match="share a weight"):
            fsdp._check_shared(model, fsdp.find_layers(model))
    model = Divisible()
    model.layers[0] = model.layers[1]
    with pytest.raises(ProblemError, match="share a weight"):
        fsdp._check_shared(model, fsdp.find_layers(model))
    with pytest.raises(ProblemError, match="Linear has no `_no_split_modules`"):
        fsdp.find_layers(torch.nn.Linear(2, 2))


def test_a_model_that_cannot_be_sent_is_named() -> None:
    model = Divisible()
    model.hook = lambda: None
    with pytest.raises(ProblemError, match="its structure cannot be sent"):
        share_structure(model, Ranks())
