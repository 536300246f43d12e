"""`launch.strategy: deepspeed`: the numbers of one process, and a ds_config that cannot contradict the profile."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.profile import ProfileError, parse
from engine.protocol.journal import BadBatch, Start
from engine.training.parallel import deepspeed_config
from tests.training.harness import Supervised
from tests.training.test_fsdp import FULL, compare

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
BRIEF = ("training.max_steps=6", "checkpoint.every_steps=3", "evaluation.every_steps=3", "checkpoint.keep=20")


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is on the path of the runs alone: on that of the tests, accelerate would import it."""
    monkeypatch.setattr(deepspeed_config, "is_installed", lambda: PLACE is not None)


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
        (2, ()),
        (3, FULL),
        (3, ("training.gradient_checkpointing=true", "training.accumulation=2", "evaluation.probes=[w1 w2, w3]")),
        (2, (*FULL, "training.accumulation=2")),
        (1, (*FULL, "training.optimizer=sgd")),
    ],
    ids=["zero2-lora", "zero3-full", "zero3-lora-checkpointing", "zero2-full-accumulation", "zero1-sgd"],
)
def test_two_ranks_compute_what_one_process_does(
    start_run: Callable[..., Supervised], stage: int, changes: tuple[str, ...]
) -> None:
    from safetensors.torch import load_file

    whole = start_run("one", *changes, *BRIEF)
    whole.train()
    run = start_run("two", *changes, *BRIEF, "training.micro_batch=2", launch(stage))
    train(run)
    compare(run, whole)
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
    for source, target, processes in ((run, alone, 1), (whole, back, 2)):
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
def test_a_batch_is_held_back_and_its_gradients_are_dropped(start_run: Callable[..., Supervised], stage: int) -> None:
    """With offload, where DeepSpeed keeps gradients elsewhere."""
    flat = ("training.learning_rate=1e-5", "training.epochs=4", "limits.loss_spike=1.003", "evaluation.every_steps=100")
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
                run.ask("continue", choice="skip" if held == 1 else "")
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


def find_problems(config: dict[str, Any], *changes: str) -> set[str]:
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
    grows = ("method={kind: sft}", "model.dtype=bfloat16", "training={micro_batch: auto, accumulation: 8}")
    assert find_problems({"train_batch_size": 16}, *grows) == set()
    assert find_problems({"train_batch_size": 8}, *grows) == {"launch.deepspeed.train_batch_size"}


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
    from engine.training.parallel.deepspeed_config import pin_config

    (tmp_path / "ds.json").write_text(json.dumps(AGREES))
    launch = "launch={processes: 2, strategy: deepspeed, deepspeed: ds.json}"
    options = parse(BASE, "test", tmp_path, (launch,), elsewhere=True)
    assert pin_config(options.launch, tmp_path, None).deepspeed == AGREES
