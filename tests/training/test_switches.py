"""Numeric and speed switches: each does what it says, none changes what is trained, and refusals are by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.options.training import TrainingOptions
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Warn
from engine.protocol.messages import ProblemError
from engine.training import compiling, liger, performance
from tests.training.in_process import entries, series, train

STEPS = ("training.max_steps=4", "evaluation.every_steps=4")


def both(tmp_path: Path, prepared: dict[str, Any], plain: tuple[str, ...], changed: tuple[str, ...]) -> list[Any]:
    """Training and held-out losses, step by step, of two runs."""
    found = []
    for name, changes in (("plain", plain), ("changed", changed)):
        run = train(Home(tmp_path), name, prepared, *STEPS, *changes)
        found.append([*series(run, "train/loss").values(), entries(run, Evaluation)[-1].values["eval/loss"]])
    return found


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("training.accumulation=2",),
        ("adapter={kind: none}", "training.learning_rate=0.001"),
        ("model.quantization=nf4",),
    ],
    ids=["lora", "accumulated", "full", "nf4"],
)
def test_without_our_optimizations_the_losses_are_the_same(
    changes: tuple[str, ...], prepared: dict[str, Any], tmp_path: Path
) -> None:
    ours, plain = both(tmp_path, prepared, changes, (*changes, "training.optimizations=false"))
    assert plain == pytest.approx(ours, rel=1e-4)


def test_the_switch_leaves_the_libraries_plain_path(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes as bnb
    from peft.tuners.lora.bnb import Linear4bit

    from engine.inference import merged_decode
    from engine.training import dropout, model
    from engine.training.adapters import fused_lora

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a shortcut was taken")

    for module, name in (
        (merged_decode, "merge_weights"),
        (dropout, "install"),
        (fused_lora, "install"),
        (compiling, "install"),
        (liger, "install"),
    ):
        monkeypatch.setattr(module, name, never)
    build, built = model.build, []
    monkeypatch.setattr(model, "build", lambda *given: built.append(build(*given)) or built[0])
    more = ("model.quantization=nf4", "adapter.dropout=0.1", "training.compile=true", "training.liger=auto")
    train(Home(tmp_path), "run", prepared, *STEPS, *more, "training.optimizations=false")
    layers = [type(module) for module in built[0].modules()]
    assert bnb.nn.Linear4bit in layers and Linear4bit in layers
    assert built[0].config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_loader_processes_give_the_same_batches_also_after_a_resume(prepared: dict[str, Any], tmp_path: Path) -> None:
    home = Home(tmp_path)
    changes = ("training.max_steps=8", "checkpoint.every_steps=4", "adapter.dropout=0.2")
    plain = train(home, "plain", prepared, *changes)
    many = train(home, "many", prepared, *changes, "training.workers=2")
    assert series(many, "train/loss") == series(plain, "train/loss")
    train(home, "many", prepared, *changes, "training.workers=2", from_step=4)
    assert series(many, "train/loss") == series(plain, "train/loss")


def test_workers_are_chosen_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert performance.count_workers("auto", "cpu", 1) == 0
    assert performance.count_workers("auto", "cuda", 1) == 4
    assert performance.count_workers("auto", "cuda", 8) == 1
    assert performance.count_workers(7, "cpu", 8) == 7
    method = SimpleNamespace(rows=[0, 1], collate=list)
    for setting, expected in ((0, 0), ("auto", 3)):
        loader = performance.make_loader(TrainingOptions(workers=setting), "cuda", 4, method, [[0], [1]])
        assert loader.num_workers == expected


def test_label_smoothing_is_that_of_transformers_and_of_training_alone(
    prepared: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers.trainer_pt_utils import LabelSmoother

    from engine.models.loss import token_losses

    torch.manual_seed(0)
    logits, targets = torch.randn(1, 9, 30), torch.randint(30, (1, 9))
    theirs = LabelSmoother(epsilon=0.2)({"logits": logits}, targets)
    assert float(token_losses(logits[0], targets[0], 0.2).sum()) / 9 == pytest.approx(float(theirs), rel=1e-6)
    still = "training.learning_rate=1.0e-12"
    plain, smoothed = both(tmp_path, prepared, (still,), (still, "training.label_smoothing=0.3"))
    assert smoothed[-1] == plain[-1]  # held out
    assert all(one != other for one, other in zip(plain[:-1], smoothed[:-1], strict=True))


def test_neftune_gives_each_row_the_noise_of_its_own_length() -> None:
    import torch
    from transformers.integrations.neftune import neftune_post_forward_hook

    from engine.models.segments import Segments
    from engine.training import neftune

    flat = neftune.noise(torch.zeros(1, 20, 64), 5.0, [4, 16])
    for part, length in zip(flat.split([4, 16], dim=1), (4, 16), strict=True):
        bound = 5.0 / (length * 64) ** 0.5
        assert 0.9 * bound < float(part.abs().max()) <= bound

    embeddings = torch.nn.Embedding(9, 64)
    embeddings.neftune_noise_alpha = 5.0
    ids = torch.arange(8)[None]
    torch.manual_seed(3)
    theirs = neftune_post_forward_hook(embeddings, None, embeddings(ids))
    model = torch.nn.Module()
    model.get_input_embeddings = lambda: embeddings
    neftune.install(model, 5.0, Segments())
    torch.manual_seed(3)
    assert torch.allclose(embeddings(ids), theirs, atol=1e-6)
    embeddings.eval()
    assert torch.equal(embeddings(ids), embeddings.weight[:8][None])


def test_neftune_disturbs_training_alone(prepared: dict[str, Any], tmp_path: Path) -> None:
    still = "training.learning_rate=1.0e-12"
    plain, noisy = both(tmp_path, prepared, (still,), (still, "training.neftune=5.0"))
    assert noisy[-1] == plain[-1]
    assert all(one != other for one, other in zip(plain[:-1], noisy[:-1], strict=True))


@pytest.mark.parametrize(
    ("setting", "kind", "steps", "expected"),
    [
        ("auto", "cpu", 10_000, False),
        ("auto", "cuda", 499, False),
        ("auto", "cuda", 500, True),
        ("auto", "mps", 500, True),
        (True, "cpu", 1, True),
        (False, "cuda", 10_000, False),
    ],
)
def test_compiling_is_chosen_by_device_and_length(setting: Any, kind: str, steps: int, expected: bool) -> None:
    assert compiling.is_enabled(setting, kind, steps) is expected


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_lose_what_plain_ones_do(
    checkpointing: bool, prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's own tracing and differentiation, but no code made for this machine, which would take a minute."""
    from torch._dynamo.backends.debugging import aot_eager

    calls = []

    def counted(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(compiling, "BACKEND", counted)
    more = (f"training.gradient_checkpointing={str(checkpointing).lower()}",)
    plain, compiled = both(tmp_path, prepared, more, (*more, "training.compile=true"))
    # The layers share their programs, which end at the attention alone: twice as many if the first layer, whose input
    # comes from frozen embeddings, had its own, and two more for each of transformers' hooks.
    assert 0 < len(calls) <= 5
    assert compiled == pytest.approx(plain, rel=1e-5)


def raises_at_once(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler here")


def raises_when_launched(graph: Any, inputs: Any) -> Any:
    def launch(*_: Any) -> Any:
        raise RuntimeError("Triton Error [CUDA]: no compiler here")

    return launch


def computes_something_else(graph: Any, inputs: Any) -> Any:
    import torch
    from torch._dynamo.backends.debugging import aot_eager

    right = aot_eager(graph, inputs)
    return lambda *given: [
        part * 1.5 if torch.is_tensor(part) and part.is_floating_point() else part for part in right(*given)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", [raises_at_once, raises_when_launched, computes_something_else])
def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(
    backend: Any, prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", backend)
    plain, compiled = both(tmp_path, prepared, (), ("training.compile=true",))
    assert compiled == plain
    (told,) = [entry for entry in entries(Home(tmp_path).run("changed"), Warn) if entry.code == "trial.failed"]
    assert ("differ" if backend is computes_something_else else "no compiler here") in told.message


def test_liger_is_refused_by_name_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert liger.is_enabled("auto", "cpu") is False
    assert liger.is_enabled(False, "cuda") is False
    with pytest.raises(ProblemError, match=r"training\.liger needs an NVIDIA"):
        liger.is_enabled(True, "cpu")
    monkeypatch.setattr(liger, "find_spec", lambda _: None)
    assert liger.is_enabled("auto", "cuda") is False
    with pytest.raises(ProblemError, match="liger-kernel"):
        liger.is_enabled(True, "cuda")
    monkeypatch.setattr(liger, "find_spec", lambda _: object())
    assert liger.is_enabled("auto", "cuda") is True


@pytest.mark.parametrize("change", ["training.tf32=true", "training.liger=true"])
def test_what_a_cpu_does_not_have_is_refused_before_the_model_is_loaded(
    change: str, prepared: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ProblemError) as refused:
        train(Home(tmp_path), "run", prepared | {"base": prepared["base"]}, change)
    assert change.partition("=")[0] in f"{refused.value.problem.cause} {refused.value.problem.title}"


def test_tf32_wants_a_card_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    with pytest.raises(ProblemError, match="Tesla V100 has no TF32"):
        performance.check_device(TrainingOptions(tf32=True), "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    performance.check_device(TrainingOptions(tf32=True), "cuda")
