"""`launch.strategy: deepspeed`: the numbers of one process, and a ds_config that cannot contradict the profile."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.profile import ProfileError, parse
from engine.protocol.journal import BadBatch, Evaluation, Metrics, Sample, Start
from engine.protocol.messages import ProblemError
from engine.training import live_settings
from engine.training.parallel import deepspeed_config
from engine.training.parallel.deepspeed import DeepSpeed
from engine.training.parallel.deepspeed_config import pin_config, read_config
from engine.training.ranks import Ranks
from tests.training.harness import Supervised
from tests.training.test_fsdp import FULL, LOSSES, SHARDED, compare

FOLDER = Path(sys.prefix, "deepspeed")
"""Where `make test` installs it, apart from what every other test imports."""


def find_folder() -> Path | None:
    """The folder that has the package, where there is one."""
    if (FOLDER / "deepspeed").is_dir():
        return FOLDER
    spec = importlib.util.find_spec("deepspeed")
    return Path(spec.origin).parents[1] if spec and spec.origin else None


PLACE = find_folder()
needs_deepspeed = pytest.mark.skipif(PLACE is None, reason="deepspeed is not installed: make test does")
REPLIES = ("evaluation.task=triples", "data.validation=[{source: triples/dev.jsonl}]", "generation.max_new_tokens=4")
QUESTION = {"messages": [{"role": "user", "content": "w1 w2"}], "max_new_tokens": 4}
BRIEF = ("training.max_steps=6", "checkpoint.every_steps=3", "evaluation.every_steps=3", "checkpoint.keep=20")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers find it in `FOLDER`; this process would not."""
    monkeypatch.setattr(deepspeed_config, "_find_lack", lambda: "")


def launch(stage: int, **more: Any) -> str:
    config = {"zero_optimization": {"stage": stage, **more}, "gradient_clipping": "auto"}
    return f"launch={json.dumps({'processes': 2, 'strategy': 'deepspeed', 'deepspeed': config})}"


def train(run: Supervised, *, fails: bool = False, fault: str = "") -> None:
    run.start(processes=2, environment={"PYTHONPATH": str(PLACE)}, fault=fault)
    assert bool(run.wait()) == fails, run.log()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (2, REPLIES),
        (3, FULL),
        (
            3,
            (
                *REPLIES,
                "training.gradient_checkpointing=true",
                "training.accumulation=2",
                "evaluation.probes=[w1 w2, w3]",
            ),
        ),
        (2, (*FULL, "training.accumulation=2")),
        (1, (*FULL, "training.optimizer=sgd")),
        (1, ()),
    ],
    ids=["zero2-lora", "zero3-full", "zero3-lora-checkpointing", "zero2-full-accumulation", "zero1-sgd", "zero1-lora"],
)
def test_two_ranks_compute_what_one_process_does(
    start_run: Callable[..., Supervised], asked: dict[str, Any], stage: int, changes: tuple[str, ...]
) -> None:
    """With REPLIES also to what is asked of them meanwhile: held-out replies, questions in a pause and beside steps,
    an evaluation and a checkpoint out of turn."""
    from safetensors.torch import load_file

    held_out = asked if changes[:1] == REPLIES[:1] else {}
    prepared = {"prepared": held_out} if held_out else {}
    whole = start_run("one", *changes, *BRIEF, **prepared)
    whole.train()
    run = start_run("two", *changes, *BRIEF, "training.micro_batch=2", launch(stage), **prepared)
    if held_out:
        run.start(processes=2, environment={"PYTHONPATH": str(PLACE)})
        asked_first = [run.tell("generate", **QUESTION, request="r"), run.tell("pause")]  # before the last step
        run.until(lambda: set(asked_first) <= run.answers.keys())
        answers = [run.ask("generate", **QUESTION, request="p"), run.ask("save"), run.ask("evaluate")]
        answers += [run.ask("continue"), *(run.answers[each] for each in asked_first)]
        assert not [each.problem for each in answers if each.problem]
        assert answers[0].result["tokens"] >= 1 and run.answers[asked_first[0]].result["tokens"] >= 1
        assert run.wait() == 0, run.log()
        ours, theirs = ({e.step: e.reply for e in each.entries(Sample) if e.step in (3, 6)} for each in (run, whole))
        assert ours == theirs and set(ours) == {3, 6}
        assert "eval/triples_f1" in run.entries(Evaluation)[-1].values
    else:
        train(run)
    compare(run, whole, evaluations=not held_out)
    for step in whole.run.checkpoint_steps():
        ours, theirs = (next(each.run.checkpoint(step).glob("*.safetensors")) for each in (run, whole))
        found, wanted = load_file(ours), load_file(theirs)
        assert ours.name == theirs.name and found.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@needs_deepspeed
@pytest.mark.slow
def test_a_resume_is_exact_and_other_strategies_go_on_from_there(start_run: Callable[..., Supervised]) -> None:
    whole = start_run("one", *FULL, *BRIEF)
    whole.train()
    run = start_run("two", *FULL, *BRIEF, "training.micro_batch=2", launch(2))
    train(run, fails=True, fault="boundary:5")
    train(run)
    assert [(entry.step, entry.resumed) for entry in run.entries(Start)] == [(0, ""), (3, "exact")]
    compare(run, whole)
    back = start_run("back", *FULL, *BRIEF, "training.micro_batch=2", launch(3))
    alone = start_run("alone", *FULL, *BRIEF)
    four = start_run("four", *FULL, *BRIEF, "training.micro_batch=1", launch(2), "launch.processes=4")
    shared = start_run("shared", *FULL, *BRIEF, "training.micro_batch=2", SHARDED)
    other = start_run("other", *FULL, *BRIEF, "training.micro_batch=2", SHARDED)
    other.train(processes=2)
    taken = start_run("taken", *FULL, *BRIEF, "training.micro_batch=2", launch(3))
    runs = ((run, alone, 1), (run, back, 2), (run, four, 4), (run, shared, 2), (other, taken, 2))
    for source, target, processes in runs:
        shutil.copytree(source.run.checkpoint(3), target.run.checkpoint(3))
        shutil.copy(source.run.events, target.run.events)
        target.attempts = 2
        target.start(processes=processes, environment={"PYTHONPATH": str(PLACE)})
        assert target.wait() == 0, target.log()
        assert "read back differs" not in target.entries(Start)[-1].resumed
        assert target.entries(Start)[-1].step == 3
        compare(target, whole)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_resume_in_bfloat16_restores_the_float32_masters(start_run: Callable[..., Supervised], stage: int) -> None:
    """With a rate at which a step is far below what bfloat16 can tell apart."""
    half = (*FULL, *BRIEF, "model.dtype=bfloat16", "training.learning_rate=1e-5", "training.micro_batch=2")
    run = start_run("half", *half, launch(stage))
    train(run, fails=True, fault="dtype:bfloat16;boundary:5")
    train(run, fault="dtype:bfloat16")
    assert [(entry.step, entry.resumed) for entry in run.entries(Start)] == [(0, ""), (3, "exact")]
    first, second = ({e.step: e.values["train/loss"] for e in run.entries(Metrics) if e.attempt == n} for n in (1, 2))
    assert [first[step] for step in (4, 5)] == [second[step] for step in (4, 5)]
    kept = torch.load(run.run.checkpoint(6) / "trainer" / "masters.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in kept.values())
    assert any((value.bfloat16().float() != value).any() for value in kept.values())


@needs_deepspeed
@pytest.mark.slow
def test_a_checkpoint_written_beside_training_has_all_weights(start_run: Callable[..., Supervised]) -> None:
    """Of stage 3, where the model itself is empty between the passes; its weights are kept in float32 and published in
    bfloat16."""
    from safetensors.torch import load_file

    run = start_run("beside", *FULL, *BRIEF, "model.dtype=bfloat16", "training.micro_batch=2", launch(3))
    train(run, fault="dtype:float32;beside:")
    for step in (3, 6):
        folder = run.run.checkpoint(step)
        published, kept = load_file(folder / "model.safetensors"), torch.load(folder / "trainer" / "masters.pt")
        assert len(published) > 10 and published.keys() <= kept.keys()
        for name, weight in published.items():
            assert weight.numel() and torch.equal(weight, kept[name].bfloat16()), name


@needs_deepspeed
@pytest.mark.slow
def test_a_run_is_steered_asked_and_goes_on_from_another_strategy(start_run: Callable[..., Supervised]) -> None:
    """With an adapter, whose second group of weights is empty: DeepSpeed drops it, and the others save it."""
    whole = start_run("one", *BRIEF)
    whole.train()
    rare = ("evaluation.every_steps=1000", "checkpoint.every_steps=1000")
    run = start_run("two", *BRIEF, *rare, "training.micro_batch=2", "training.max_steps=5000", launch(3))
    shutil.copytree(whole.run.checkpoint(3), run.run.checkpoint(3))
    shutil.copy(whole.run.events, run.run.events)
    run.attempts = 1
    run.start(processes=2, environment={"PYTHONPATH": str(PLACE)})
    run.until(lambda: run.entries(Start)[-1].attempt == 2 and run.entries(Metrics)[-1].attempt == 2)
    assert run.ask("pause").problem is None
    question = {"messages": [{"role": "user", "content": "w1 w2"}], "request": "r", "max_new_tokens": 4}
    answer = run.ask("generate", **question)
    assert answer.problem is None and answer.result["tokens"] >= 1
    changes = {"training.learning_rate": 1e-3, "training.max_grad_norm": 0.5}
    assert run.ask("set", changes=changes).problem is None
    assert run.ask("continue").problem is None
    run.until(lambda: run.entries(Metrics)[-1].values["train/learning_rate"] < 1.1e-3)
    assert run.ask("stop").problem is None
    assert run.wait() == 0, run.log()
    assert "read back" not in run.entries(Start)[-1].resumed
    for name in LOSSES[:2]:
        assert run.series(name)[4] == pytest.approx(whole.series(name)[4], rel=1e-4), name


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_batch_is_held_back_and_its_gradients_are_dropped(start_run: Callable[..., Supervised], stage: int) -> None:
    """With offload, where DeepSpeed keeps gradients elsewhere."""
    flat = ("training.learning_rate=1e-5", "training.epochs=4", "limits.loss_spike=1.003", "evaluation.every_steps=100",
            "checkpoint.every_steps=4", "checkpoint.keep=99")  # fmt: skip
    choice = "rollback" if stage == 3 else "skip"
    runs = []
    for name, processes, more in (
        ("one", 1, ()),
        ("two", 2, ("training.micro_batch=2", launch(stage, offload_optimizer={"device": "cpu"}))),
    ):
        run = start_run(name, *FULL, *flat, *more)
        run.start(processes=processes, environment={"PYTHONPATH": str(PLACE)})
        held = 0
        while run.process.poll() is None:  # type: ignore[union-attr]
            run._hear()
            if len(run.entries(BadBatch)) > held:
                held += 1
                run.ask("continue", choice=choice if held == 1 else "")
        assert run.wait() == 0, run.log()
        assert held
        runs.append(run)
    assert [entry.step for entry in runs[0].entries(BadBatch)] == [entry.step for entry in runs[1].entries(BadBatch)]
    compare(runs[1], runs[0], evaluations=False)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

BASE = """
model: {base: smollm2-135m-instruct}
data: {train: [{source: triples/train.jsonl}]}
"""


def find_problems(config: dict[str, Any] | str, *changes: str) -> set[str]:
    """The keys that a profile with this ds_config is refused for."""
    launch = f"launch={json.dumps({'processes': 2, 'via': 'slurm', 'strategy': 'deepspeed', 'deepspeed': config})}"
    try:
        parse(BASE, "test", Path("/"), (launch, *changes), elsewhere=True)
    except ProfileError as error:
        return {issue.key for issue in error.issues}
    return set()


AGREES = {
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto"},
    "train_batch_size": 2,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}},
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16},
    "steps_per_print": 100,
}
CONTRADICTIONS = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 8,
    "gradient_clipping": 0.5,
    "optimizer.type": "Lion",
    "optimizer.params.lr": 3e-5,
    "optimizer.params.weight_decay": 0.1,
    "optimizer.params.betas": [0.9, 0.95],
    "optimizer.params.eps": 1e-6,
    "optimizer.params.amsgrad": True,
    "scheduler.type": "WarmupLR",
    "scheduler.params.warmup_num_steps": 500,
    "scheduler.params.warmup_type": "log",
    "bf16.enabled": False,
    "fp16.enabled": True,
    "zero_optimization.stage": 0,
    "zero_optimization.zenflow": {},
    "zero_optimization.offload_optimizer.device": "nvme",
    "tensor_parallel": {"autotp_size": 2},
    "prescale_gradients": True,
}


def change(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {**config, head: change(config.get(head, {}), rest, value) if rest else value}


def test_a_ds_config_that_contradicts_the_profile_is_refused() -> None:
    plain = ("method={kind: sft}", "model.dtype=bfloat16", "training={micro_batch: 1, accumulation: 1}")
    assert find_problems(AGREES, *plain) == set()
    assert find_problems({}, *plain) == set()
    for key, value in CONTRADICTIONS.items():
        assert find_problems(change(AGREES, key, value), *plain) == {f"launch.deepspeed.{key}"}, key


REFUSED = {
    "adapter.kind": "adapter={kind: dora}",
    "method.kind": "method={kind: dpo}",
    "model.quantization": "model.quantization=nf4",
    "model.dtype": "model.dtype=float16",
    "training.optimizer": "training.optimizer=muon",
    "training.ema": "training.ema={decay: 0.5}",
    "training.compile": "training.compile=true",
    "training.router_aux_loss": "training.router_aux_loss=0.1",
    "launch.strategy": "launch.processes=1",
}


def test_what_does_not_work_is_refused_by_name() -> None:
    for key, setting in REFUSED.items():
        assert key in find_problems({}, setting), key
    assert "training.masters" in find_problems({}, "adapter={kind: none}", "training.masters=none")
    for other in ("launch.strategy=fsdp", "launch.strategy=ddp"):
        assert "launch.deepspeed" in find_problems({}, other)


def test_the_file_is_read_when_the_run_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(AGREES))
    launch = "launch={processes: 2, strategy: deepspeed, deepspeed: ds.json}"
    options = parse(BASE, "test", tmp_path, (launch,), elsewhere=True)
    assert pin_config(options.launch, tmp_path, None).deepspeed == AGREES


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "/dev/zero", ".", "missing.json"):
        with pytest.raises(ValueError):
            read_config(name, tmp_path)
    (tmp_path / "huge.json").write_text(json.dumps({"gradient_accumulation_steps": 10**400}))
    assert find_problems(str(tmp_path / "huge.json")) == {"launch.deepspeed.gradient_accumulation_steps"}


def test_settings_that_change_while_a_run_goes_on_do_not_contradict_its_ds_config(tmp_path: Path) -> None:
    config = {**AGREES, "train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-4}}
    launch = f"launch={json.dumps({'processes': 2, 'strategy': 'deepspeed', 'deepspeed': config})}"
    plain = ("training={micro_batch: 4, accumulation: 1, learning_rate: 1e-4}", "model.dtype=bfloat16")
    profile = parse(BASE, "test", tmp_path, (launch, *plain), elsewhere=True)
    for key, value in (("micro_batch", 2), ("accumulation", 2), ("learning_rate", 5e-5), ("max_grad_norm", 0.1)):
        profile = live_settings.replace_setting(profile, f"training.{key}", value)
    DeepSpeed(None, Ranks(world=2)).configure(profile)
    with pytest.raises(ProblemError, match="train_batch_size"):
        DeepSpeed(None, Ranks(world=3)).configure(profile)
