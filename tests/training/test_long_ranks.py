"""Long proofs over ranks: every strategy with every kind of method on two and four ranks, and a divided model that is
killed in every part of a step."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from engine.options.tables import STRATEGIES
from engine.prep.token_rows import MASKED
from engine.protocol.home import Home
from engine.protocol.journal import Start
from engine.training.online.checks import describe_reward_model
from engine.training.online.options import OnlineOptions, RewardOptions
from engine.training.parallel import deepspeed_config
from tests.training import online
from tests.training.harness import Supervised, make_rows
from tests.training.here import Here
from tests.training.preferences import make_scorer
from tests.training.test_deepspeed import PLACE
from tests.training.test_exact import LOSSES, MANY
from tests.training.test_fsdp import FULL, SHARDED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("COCKPIT_LONG_TESTS" not in os.environ, reason="takes minutes: set COCKPIT_LONG_TESTS=1"),
    pytest.mark.timeout(900),
]
STEPS = 20
TWENTY = (*FULL, "training.epochs=3", f"training.max_steps={STEPS}", "evaluation.every_steps=100")
"""Of 27 rows in batches of four the last window of each epoch has three: with four ranks, one of them has nothing."""


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers find DeepSpeed in `PLACE`; this process would not."""
    monkeypatch.setattr(deepspeed_config, "_find_lack", lambda: "")


def list_strategies(method: str) -> list[str]:
    names = [name for name in STRATEGIES if name != "deepspeed" or PLACE is not None]
    return [name for name in names if method in ("sft", "pretrain") or not STRATEGIES[name].foreign]


def describe(method: str) -> tuple[str, ...]:
    """Pretraining begins with random weights."""
    return (f"method={{kind: {method}}}", *(("model.init=config",) if method == "pretrain" else ()))


def launch(strategy: str, ranks: int) -> str:
    return f"launch={json.dumps({'processes': ranks, 'strategy': strategy})}"


def train(run: Supervised, processes: int, fault: str = "") -> dict[int, float | None]:
    run.start(processes=processes, environment={"PYTHONPATH": str(PLACE)} if PLACE else None, fault=fault)
    assert run.wait() == 0, run.log()
    losses = run.series("train/loss")
    assert set(losses) == set(range(1, STEPS + 1))
    return losses


def make_blocks(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Two rows each, joined as for pretraining: every token is trained but the first of each part."""
    parts = [row["input_ids"] for row in make_rows(2 * count, seed)]
    return [
        {
            "input_ids": first + second,
            "labels": [MASKED, *first[1:], MASKED, *second[1:]],
            "seq_lengths": [len(first), len(second)],
        }
        for first, second in zip(parts[::2], parts[1::2], strict=True)
    ]


@pytest.fixture(scope="module")
def rows_of(
    tmp_path_factory: pytest.TempPathFactory, prepared: dict[str, Any], sets: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Method -> prepared.json."""
    folder = tmp_path_factory.mktemp("blocks")
    for name, count, seed in (("train", 27, 1), ("validation", 6, 2)):
        Dataset.from_list(make_blocks(count, seed)).save_to_disk(str(folder / name))
    blocks = prepared | {name: str(folder / name) for name in ("train", "validation")}
    return {"sft": prepared, "pretrain": blocks, "dpo": sets["dpo"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, rows_of: dict[str, dict[str, Any]]) -> Any:
    """A method's losses in one process."""

    @functools.cache
    def train_alone(method: str) -> dict[int, float | None]:
        folder = tmp_path_factory.mktemp(method)
        run = Here(folder, "whole", rows_of[method], *TWENTY, *describe(method))
        assert run.train() == ("completed", STEPS)
        return run.series("train/loss")

    return train_alone


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("method", "strategy"),
    [(method, strategy) for method in ("sft", "pretrain", "dpo") for strategy in list_strategies(method)],
)
def test_ranks_lose_as_one_process(
    start_run: Callable[..., Supervised],
    rows_of: dict[str, dict[str, Any]],
    alone: Callable[[str], dict[int, float | None]],
    method: str,
    strategy: str,
    ranks: int,
) -> None:
    more = (f"training.micro_batch={4 // ranks}", *describe(method), launch(strategy, ranks))
    run = start_run("run", *TWENTY, *more, prepared=rows_of[method])
    assert train(run, ranks) == pytest.approx(alone(method), rel=1e-4)


@pytest.fixture(scope="module")
def rewarded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Prepared prompts, and the reward model. Of 21 prompts, the last global batch of two or of four has one."""
    folder = tmp_path_factory.mktemp("rewarded")
    scorer = make_scorer(tiny, folder / "scorer")
    method = OnlineOptions(kind="grpo", reward=RewardOptions(run=str(scorer)))
    return online.prepare(folder, tiny, 21, **describe_reward_model(method, folder, Home(folder))), scorer


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_lose_as_one_process_where_replies_are_sampled(
    start_run: Callable[..., Supervised], rewarded: tuple[dict[str, Any], Path], ranks: int
) -> None:
    """Each rank draws from a generator of its own; here the numbers are the prompts', or the replies would differ."""
    prompts, scorer = rewarded

    def lose(name: str, processes: int, *more: str) -> Supervised:
        run = start_run(
            name,
            *TWENTY,
            f"method={{kind: grpo, beta: 0.1, generations: 4, max_new_tokens: 8, reward: {{run: {scorer}}}}}",
            f"training={{epochs: 4, micro_batch: {4 * ranks // processes}, threads: 1, max_steps: {STEPS}}}",
            "evaluation={every_steps: 100, samples: 4}",
            "checkpoint.best_by=eval/reward",
            *more,
            prepared=prompts,
        )
        train(run, processes, fault="prompted:")
        return run

    alone = lose("alone", 1)
    rewards = alone.series("train/reward")
    assert len(set(rewards.values())) > STEPS // 2  # different replies are sampled, and there is something to learn
    for strategy in list_strategies("grpo"):
        run = lose(strategy, ranks, launch(strategy, ranks))
        assert run.series("train/reward") == pytest.approx(rewards, rel=1e-4), strategy
        assert run.series("train/grad_norm") == pytest.approx(alone.series("train/grad_norm"), rel=1e-4), strategy
        # A group's advantages have the sum 0: of replies of one length, so have the losses, but for rounding.
        assert run.series("train/loss") == pytest.approx(alone.series("train/loss"), rel=1e-4, abs=1e-7), strategy


def test_a_divided_model_killed_in_every_part_of_a_step_goes_on_exactly(start_run: Callable[..., Supervised]) -> None:
    """As `test_exact` does with one process."""
    whole = start_run("whole", *MANY, "training.micro_batch=1", SHARDED)
    whole.train(processes=2)
    run = start_run("killed", *MANY, "training.micro_batch=1", SHARDED)
    for fault in ("compute:4", "save:6", "boundary:7", "evaluate:10"):
        run.start(processes=2, fault=fault)
        assert run.wait() != 0, run.log()
    run.train(processes=2)
    for name in LOSSES:
        assert run.series(name) == whole.series(name), name
    assert [entry.step for entry in run.entries(Start)] == [0, 3, 3, 6, 9]
    assert [entry.resumed for entry in run.entries(Start)][1:] == ["exact"] * 4
