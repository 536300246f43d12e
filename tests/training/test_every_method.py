"""What every method has in common: recomputed layers, loader processes and packing change no loss, an adapter is all
that moves where there is one, also on experts, and what teaches nothing moves nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from engine.models import loading
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation
from engine.protocol.messages import ProblemError
from tests.models.small import EXPERTS, build
from tests.training import online, preferences
from tests.training.harness import pack
from tests.training.in_process import entries, series, train
from tests.training.test_adapters import KINDS, Watch, adapter

PREFERENCE = ("dpo", "orpo", "kto", "reward")
ONLINE = ("grpo", "rloo")
STEPS = ("training.max_steps=2", "training.warmup=0", "training.scheduler=constant")
REWARDED = (
    "method.reward={task: lows, metric: lows}", "method.generations=4", "method.max_new_tokens=8",
    "checkpoint.best_by=eval/reward", "evaluation.samples=0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _lows(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.tasks import TASKS

    monkeypatch.setitem(TASKS, "lows", "tests.training.lows")


@pytest.fixture(scope="module")
def given(sets: dict[str, dict[str, Any]], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Method -> prepared.json."""
    prompts = online.prepare(tmp_path_factory.mktemp("prompts"), tiny)
    return {**sets, **dict.fromkeys(ONLINE, prompts)}


def changes_for(method: str) -> list[str]:
    return [f"method.kind={method}", *STEPS, *(REWARDED if method in ONLINE else ())]


@pytest.mark.parametrize("method", [*PREFERENCE, *ONLINE])
def test_recomputed_layers_lose_what_kept_ones_lose(method: str, given: Any, tmp_path: Path) -> None:
    found = []
    for checkpointing in ("false", "true"):
        changes = [*changes_for(method), f"training.gradient_checkpointing={checkpointing}"]
        run = train(Home(tmp_path / checkpointing), "run", given[method], *changes)
        found.append({name: series(run, f"train/{name}") for name in ("loss", "grad_norm")})
    plain, saving = found
    for name in plain:
        assert saving[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-7), name
    assert any(norm > 0 for norm in plain["grad_norm"].values())


@pytest.mark.parametrize("method", PREFERENCE)
def test_a_base_in_16_bits_loses_what_it_loses_in_32(method: str, given: Any, tmp_path: Path) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        run = train(Home(tmp_path / dtype), "run", given[method], *changes_for(method), f"model.dtype={dtype}")
        found.append(series(run, "train/loss"))
    assert found[1] == pytest.approx(found[0], rel=0.02) and len(found[0]) == 2


def test_packed_held_out_rows_lose_what_they_lose_alone(prepared: dict[str, Any], tmp_path: Path) -> None:
    from datasets import load_from_disk

    for name in ("train", "validation"):
        pack(Path(prepared[name]), tmp_path / name)
    packed = {name: str(tmp_path / name) for name in ("train", "validation")}
    assert len(load_from_disk(packed["validation"])) < len(load_from_disk(prepared["validation"]))
    found = []
    for name, given, packing in (("alone", prepared, "false"), ("joined", prepared | packed, "true")):
        changes = (*STEPS, "evaluation.at_start=true", f"data.packing={packing}")
        found.append(entries(train(Home(tmp_path), name, given, *changes), Evaluation)[0])
    assert [each.step for each in found] == [0, 0]
    alone, joined = (each.values["eval/loss"] for each in found)
    assert joined == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kto", "grpo"])
def test_loader_processes_change_no_loss(method: str, given: Any, tmp_path: Path) -> None:
    """The two methods whose batches hold more than rows of the set: other rows' replies, and none yet."""
    losses = [
        series(
            train(Home(tmp_path / str(count)), "run", given[method], *changes_for(method), f"training.workers={count}"),
            "train/loss",
        )
        for count in (0, 2)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def check_moved(watch: Watch, parts: tuple[str, ...]) -> None:
    """Weights with these parts in their names have moved, all of them, and no others."""
    expected = {name for name in watch.before if any(part in name for part in parts) and "original_module" not in name}
    assert expected == watch.moved
    for name, parameter in watch.model.named_parameters():
        assert parameter.equal(watch.before[name]) is (name not in expected), name


@pytest.mark.parametrize("kind", ["none", "lora"])
@pytest.mark.parametrize("method", ONLINE)
def test_online_methods_move_what_is_trained_and_nothing_else(
    method: str, kind: str, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With replies among the likeliest tokens alone, and a reference."""
    watch = Watch(monkeypatch)
    more = (adapter(kind), "method.top_k=20", "method.top_p=0.9", "method.beta=0.1", "training.learning_rate=1.0e-3")
    run = train(Home(tmp_path), "run", given[method], *changes_for(method), "training.accumulation=2", *more)
    check_moved(watch, KINDS[kind])
    assert all(math.isfinite(loss) for loss in series(run, "train/loss").values())


@pytest.mark.parametrize("method", ["dpo", "kto", "reward", "grpo"])
def test_an_adapter_on_experts_is_all_that_moves(
    method: str, given: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    build("mixtral", **EXPERTS).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(base)
    if method == "reward":
        base = preferences.make_scorer(base, tmp_path / "scorer")
    watch = Watch(monkeypatch)
    train(Home(tmp_path), "run", given[method] | {"base": str(base)}, *changes_for(method), adapter("lora"))
    check_moved(watch, (*KINDS["lora"], *(("modules_to_save",) if method == "reward" else ())))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("grpo", "method.loss_type=dapo"),
        ("grpo", "method.loss_type=grpo"),
        ("rloo", "method.normalize_advantages=true"),
    ],
)
def test_replies_that_were_all_cut_teach_nothing_where_they_are_masked(
    method: str, more: str, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.training.online import method as sampling

    def speak(_: Any, __: Any, asked: list[Any], *___: Any) -> list[list[int]]:
        return [[4 + 7 * (number % 4)] * 8 for number in range(len(asked))]  # w0, w7, w14, w21: of two rewards

    monkeypatch.setattr(sampling, "sample_batch", speak)
    watch = Watch(monkeypatch)
    changes = [*changes_for(method), adapter("none"), more]
    run = train(Home(tmp_path), "masked", given[method], *changes, "method.mask_truncated=true")
    assert series(run, "train/completions_cut") == {1: 1.0, 2: 1.0}
    assert set(series(run, "train/loss").values()) == set(series(run, "train/grad_norm").values()) == {0.0}
    assert not watch.moved and all(watch.before[name].equal(each) for name, each in watch.model.named_parameters())
    train(Home(tmp_path), "learnt", given[method], *changes)
    assert watch.moved


def test_a_scorer_of_several_labels_is_no_base_of_a_reward_model(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ProblemError) as refused:
        loading.load_reward_model(str(tmp_path))
    assert refused.value.problem.code == "model.no_reward_head" and "3" in refused.value.problem.cause
    assert loading.load_reward_model(str(tiny)).config.num_labels == 1
