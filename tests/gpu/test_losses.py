"""A card learns what a CPU learns, on every path that a run may take."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start
from engine.training import assemble
from tests.training import preferences
from tests.training.harness import PROFILE, make_model
from tests.training.here import Here, at
from tests.training.in_process import entries, series, train
from tests.training.test_compute import train_all
from tests.training.test_exact import LOSSES
from tests.training.test_online import FULL, LOWS, SHORT
from tests.training.test_online import _lows as _lows  # a fixture: the task that the reward is of

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]
ALL = ("adapter={kind: none}", "training.learning_rate=1.0e-3")


def losses(home: Home, name: str, prepared: dict[str, Any], *changes: str) -> list[float]:
    """The losses of a run, all of them numbers."""
    found = list(series(train(home, name, prepared, *changes), "train/loss").values())
    assert found and all(map(math.isfinite, found)), found
    return found


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ((), 1e-3),
        (ALL, 1e-3),
        (("model.quantization=nf4",), 1e-2),
        (("model.quantization=int8",), 5e-2),
        (("training.accumulation=2", "adapter={kind: dora, rank: 4}"), 1e-3),
    ],
    ids=["lora", "all weights", "nf4", "int8", "dora, accumulated"],
)
def test_the_losses_are_those_of_a_cpu(
    device: str, bare_home: Home, prepared: Any, on_cpu: Callable[..., Any], changes: tuple[str, ...], tolerance: float
) -> None:
    more = ("training.epochs=2", *changes)
    ours = losses(bare_home, "ours", prepared, *more)
    reference = on_cpu(losses, bare_home, "reference", prepared, *more)
    assert ours == pytest.approx(reference, rel=tolerance)
    assert ours[-1] < ours[0] * 0.99


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_joined_rows_lose_what_padded_rows_lose(
    device: str, bare_home: Home, prepared: Any, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    make = assemble._make_segments
    monkeypatch.setattr(assemble, "_make_segments", lambda *given: _note(made, make(*given)))
    joined = losses(bare_home, "joined", prepared, f"model.dtype={dtype}")
    padded = losses(bare_home, "padded", prepared, f"model.dtype={dtype}", "training.optimizations=false")
    assert made == [True, False], "the first run's rows were joined"
    assert joined == pytest.approx(padded, rel=tolerance)
    assert joined[-1] < joined[0]


def _note(made: list[bool], segments: Any) -> Any:
    made.append(segments is not None)
    return segments


def test_checkpointed_gradients_are_the_same(device: str, bare_home: Home, prepared: Any) -> None:
    plain = train(bare_home, "plain", prepared)
    checkpointed = train(bare_home, "checkpointed", prepared, "training.gradient_checkpointing=true")
    for name in ("train/loss", "train/grad_norm"):
        assert series(checkpointed, name) == pytest.approx(series(plain, name), rel=1e-3), name


def test_float16_is_scaled(device: str, bare_home: Home, prepared: Any) -> None:
    if device == "cpu":
        pytest.skip("float16 on a CPU is computed in float32, without a scaler")
    import torch

    run = train(bare_home, "half", prepared, "model.dtype=float16")
    wide = losses(bare_home, "wide", prepared)
    assert list(series(run, "train/loss").values()) == pytest.approx(wide, rel=2e-2)
    scaler = torch.load(run.checkpoint(run.checkpoint_steps()[-1]) / "trainer" / "scaler.pt", weights_only=True)
    assert scaler["scale"] >= 1 and entries(run, Start)[0].facts["compute_dtype"] == "float16"


def test_a_resume_is_exact(device: str, prepared: Any, tmp_path: Path) -> None:
    changes = ("adapter.dropout=0.3", "training.epochs=2", "training.micro_batch=2", "training.accumulation=2")
    whole, broken = (Here(tmp_path, name, prepared, *changes) for name in ("whole", "broken"))
    _, last = whole.train()
    for step in (3, 8):
        assert broken.train(orders=at(step, "stop")) == ("stopped", step)
    assert broken.train() == ("completed", last)
    assert [entry.resumed for entry in broken.entries(Start)] == ["", "exact", "exact"]
    for name in LOSSES:
        # On a card the order of sums in a backward pass may differ from run to run.
        assert broken.series(name) == pytest.approx(whole.series(name), rel=1e-4 if device == "cuda" else 0), name


def test_small_updates_reach_weights_of_16_bits(
    device: str, prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = train_all(tmp_path, prepared, monkeypatch, "training.masters=float32")
    assert {str(weight.dtype) for weight in after.values()} == {"torch.float32"}
    matrices = [name for name in after if after[name].dim() == 2 and "embed" not in name]
    changed = sum(int((after[name].cpu() != before[name].float()).sum()) for name in matrices)
    assert changed > 0.99 * sum(after[name].numel() for name in matrices)


def test_a_step_over_packed_rows_is_one_over_the_rows(device: str, bare_home: Home, tiny: Path) -> None:
    """One global batch that holds all rows: it has the same loss and the same gradient, however they are joined."""
    from datasets import load_from_disk

    from engine.config.profile import parse
    from engine.prep.prepare import prepare

    found = {}
    for packing in ("false", "true"):
        changes = ["data.train=[{source: samples/thought_graph.jsonl}]", "data.max_length=256"]
        changes.append(f"data.packing={packing}")
        rows = prepare(parse(PROFILE.format(base=tiny), "test", Path("/"), changes, bare_home), bare_home, _quiet)
        count = len(load_from_disk(rows["train"]))
        changes += [f"training.accumulation={count}", "training.micro_batch=1", "training.max_steps=2"]
        run = train(bare_home, f"packing-{packing}", rows, *changes)
        found[packing] = count, series(run, "train/loss"), series(run, "train/grad_norm")
    assert found["true"][0] < found["false"][0]
    assert found["true"][1] == pytest.approx(found["false"][1], rel=1e-3)
    assert found["true"][2] == pytest.approx(found["false"][2], rel=1e-2)


def _quiet(*_: Any) -> None:
    """Takes a progress and shows nothing."""


def test_dpo_loses_what_it_loses_on_a_cpu(
    device: str, bare_home: Home, tiny: Path, on_cpu: Callable[..., Any], tmp_path: Path
) -> None:
    pairs = preferences.prepare(tmp_path, tiny, "pairs")
    changes = ("method.kind=dpo", "training.max_steps=8")
    ours = losses(bare_home, "ours", pairs, *changes)
    assert ours[0] == pytest.approx(math.log(2), rel=1e-4), "the model is its own reference"
    assert ours == pytest.approx(on_cpu(losses, bare_home, "reference", pairs, *changes), rel=2e-3)
    assert ours[-1] < ours[0] * 0.99


def test_a_reward_is_learnt(device: str, bare_home: Home, tiny: Path, tmp_path: Path) -> None:
    from tests.training.online import prepare

    run = train(
        bare_home, "run", prepare(tmp_path, tiny), "method.kind=grpo", *LOWS, *SHORT, *FULL,
        "training.learning_rate=5.0e-3", "training.micro_batch=8", "training.accumulation=2", "training.max_steps=20",
        "evaluation.every_steps=20", "evaluation.at_start=true", "evaluation.samples=4",
    )  # fmt: skip
    first, last = (each.values["eval/reward"] for each in (entries(run, Evaluation)[0], entries(run, Evaluation)[-1]))
    assert first < 0.5 and last >= 0.8


@pytest.fixture(scope="module")
def wide(prepared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Rows for a model with matrices of more than 100,000 weights: bitsandbytes pages no smaller states."""
    return prepared | {"base": str(make_model(tmp_path_factory.mktemp("wide"), hidden=256))}


@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "paged_adamw", "adamw_8bit"])
def test_an_optimiser_of_a_card_keeps_its_state(device: str, wide: Any, tmp_path: Path, optimizer: str) -> None:
    """Over a rehearsal, which leaves no trace, and over a resume."""
    if device == "cpu":
        pytest.skip("these optimisers need a GPU")
    from bitsandbytes.functional import GlobalPageManager

    pages = GlobalPageManager.get_instance().paged_tensors
    pages.clear()
    changes = (f"training.optimizer={optimizer}", "training.epochs=2", *ALL)
    plain, whole, broken = (Here(tmp_path, name, wide, *changes) for name in ("plain", "whole", "broken"))
    plain.train("training.rehearsal=false")
    assert bool(pages) == optimizer.startswith("paged")
    whole.train()
    broken.train(orders=at(5, "stop"))
    broken.train()
    for other in (whole, broken):
        assert other.series("train/loss") == pytest.approx(plain.series("train/loss"), rel=3e-3), other.run.id
    told = list(plain.series("train/loss").values())
    assert told[-1] < 0.99 * told[0]  # type: ignore[operator]
