"""`training.tokens_per_batch`: micro-batches by tokens; the same loss as by rows, each row once an epoch, exact resume,
two ranks, and what is said about settings that do not go together."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse
from engine.prep.batching import token_counts
from engine.prep.token_batching import TokenBatches, TokenPlan, group_by_tokens
from engine.protocol.journal import Ledger, Start, Warn
from engine.training import memory
from tests.training import preferences
from tests.training.harness import PROFILE
from tests.training.here import Here, at

QUIET = ("training.rehearsal=false", "training.micro_batch=1", "checkpoint.keep=9")


def _lengths(count: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [min(900, 1 + int(generator.paretovariate(1.1) * 8)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(12))
def test_an_epoch_has_each_row_once_within_the_budget(seed: int) -> None:
    generator = random.Random(seed)
    lengths = _lengths(generator.randrange(1, 300), seed)
    budget, count, padded = generator.choice([16, 64, 500]), generator.randrange(1, 7), generator.random() < 0.5
    plan = TokenPlan(budget, count)
    for world, allowed in ((1, budget), (2, budget), (3, max(1, budget // 2))):
        ranks = [TokenBatches(lengths, plan, allowed, 1, rank, world, seed, padded=padded) for rank in range(world)]
        for epoch in range(2):
            seen: list[int] = []
            for each in ranks:
                each.step = epoch * each.per_epoch
            walks = [iter(each) for each in ranks]
            for step in range(ranks[0].step, ranks[0].step + ranks[0].per_epoch):
                counts = {each.count_micro_batches(step) for each in ranks}
                assert len(counts) == 1
                parts = [next(walk) for _ in range(counts.pop()) for walk in walks]
                rows = [row for part in parts for row in part]
                assert sorted(rows) == sorted(ranks[0].rows_of(step))
                for part in parts:
                    tokens = [lengths[row] for row in part]
                    size = len(tokens) * max(tokens, default=0) if padded else sum(tokens)
                    assert size <= allowed or len(part) == 1
                seen += rows
            assert all(next(walk, None) is None for walk in walks)
            assert sorted(seen) == list(range(len(lengths)))
    # Which rows a step has depends on neither the ranks nor the size of a micro-batch.
    other = TokenBatches(lengths, plan, max(1, budget // 3), 1, 0, 5, seed, padded=padded)
    assert all(sorted(other.rows_of(step)) == sorted(ranks[0].rows_of(step)) for step in range(other.per_epoch * 2))


def test_groups_are_full() -> None:
    lengths = [min(length, 512) for length in _lengths(5000)]
    groups = group_by_tokens(lengths, 512)
    assert len(groups) <= 1.02 * sum(lengths) / 512 + 1


def test_skipped_rows_leave_all_others_in_their_place() -> None:
    lengths = _lengths(60)
    batches = TokenBatches(lengths, TokenPlan(64, 2), 64, 2, 0, 1, 42)
    plain = list(batches)
    batches.skipped = {3, 17, max(range(60), key=lengths.__getitem__)}
    assert list(batches) == [[row for row in part if row not in batches.skipped] for part in plain]
    assert not batches.skipped & set(batches.pick_longest())


@pytest.mark.parametrize("optimizations", ["true", "false"])
def test_the_loss_is_that_of_the_same_rows_in_rows(
    prepared: dict[str, Any], tmp_path: Path, optimizations: str
) -> None:
    settings = (*QUIET, "training.epochs=3", "adapter.dropout=0", f"training.optimizations={optimizations}")
    rows = Here(tmp_path, "rows", prepared, *settings, "training.micro_batch=27")
    tokens = Here(tmp_path, "tokens", prepared, *settings, "training.tokens_per_batch=64", "training.accumulation=60")
    assert rows.train() == tokens.train() == ("completed", 3)
    for name in ("train/loss", "train/grad_norm", "eval/loss"):
        one, two = (_values(each, name) for each in (rows, tokens))
        assert one == pytest.approx(two, rel=1e-4), name


def _values(run: Here, name: str) -> dict[int, float]:
    from engine.protocol.journal import Evaluation, Metrics

    kind = Evaluation if name.startswith("eval/") else Metrics
    return {entry.step: entry.values[name] for entry in run.entries(kind)}


@pytest.mark.parametrize("method", ["dpo", "orpo", "reward", "kto"])
def test_preference_rows_count_their_replies(method: str, tiny: Path, tmp_path: Path) -> None:
    from datasets import load_from_disk

    rows = preferences.prepare(tmp_path / "rows", tiny, preferences.KINDS[method])
    settings = (*QUIET, "training.epochs=2", "adapter.dropout=0", f"method.kind={method}")
    whole = Here(tmp_path, "whole", rows, *settings, "training.micro_batch=40")
    tokens = Here(tmp_path, "tokens", rows, *settings, "training.tokens_per_batch=90", "training.accumulation=60")
    assert whole.train() == tokens.train() == ("completed", 2)
    for name in ("train/loss", "train/grad_norm"):
        assert _values(whole, name) == pytest.approx(_values(tokens, name), rel=1e-3), name

    stored = load_from_disk(rows["train"])
    counts = [
        sum(len(row["prompt_ids"]) + len(row[name]) for name in row if name.endswith("_ids") and name != "prompt_ids")
        for row in stored
    ]
    assert token_counts(stored) == counts
    groups = group_by_tokens(token_counts(stored), 90)
    assert max(len(group) for group in groups) > 1
    assert all(sum(counts[row] for row in group) <= 90 or len(group) == 1 for group in groups)


def test_a_resume_is_exact_and_the_steps_are_known(prepared: dict[str, Any], tmp_path: Path) -> None:
    settings = (*QUIET, "training.epochs=2", "training.tokens_per_batch=60", "training.accumulation=2")
    settings = (*settings, "adapter.dropout=0.1", "checkpoint.every_steps=2")
    whole = Here(tmp_path, "whole", prepared, *settings)
    outcome, steps = whole.train()
    assert outcome == "completed" and whole.entries(Start)[0].max_steps == steps
    broken = Here(tmp_path, "broken", prepared, *settings)
    broken.train(orders=at(3, "stop"))
    assert broken.train() == ("completed", steps)
    assert broken.entries(Start)[-1].resumed == "exact"
    assert broken.series("train/loss") == whole.series("train/loss")


def test_another_budget_says_how_much_is_repeated_or_left_out(prepared: dict[str, Any], tmp_path: Path) -> None:
    run = Here(tmp_path, "run", prepared, *QUIET, "training.epochs=2", "training.tokens_per_batch=60")
    run.train(orders=at(4, "stop"))
    run.train("training.tokens_per_batch=120", orders=at(5, "stop"))
    (warned,) = [entry for entry in run.entries(Warn) if entry.code == "resume.position"]
    assert "up to 120 tokens (1 × 120) rather than up to 60 tokens (1 × 60)" in warned.message
    assert "epochs are not trained" in warned.message and "training.tokens_per_batch" in warned.hint


def test_out_of_memory_keeps_the_global_batch(prepared: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    import torch

    from engine.training.supervised import Supervised

    settings = (*QUIET, "training.tokens_per_batch=120", "training.epochs=2", "adapter.dropout=0")
    whole = Here(tmp_path, "whole", prepared, *settings)
    _, steps = whole.train()

    plain = Supervised.loss

    def loss(self: Any, model: Any, batch: Any, units: float) -> Any:
        if batch["input_ids"].numel() > 70:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return plain(self, model, batch, units)

    monkeypatch.setattr(Supervised, "loss", loss)
    run = Here(tmp_path, "run", prepared, *settings)
    assert run.train() == ("completed", steps)
    changes = {entry.name: entry.new for entry in run.entries(Ledger)}
    assert changes == {"training.tokens_per_batch": 60, "training.accumulation": 2}
    assert run.series("train/loss") == pytest.approx(whole.series("train/loss"), rel=1e-4)


def test_a_budget_shrinks_to_the_longest_row_at_most() -> None:
    profile = parse(PROFILE.format(base="a/b"), "test", Path("/"), [*QUIET, "training.tokens_per_batch=100"])
    budgets = []
    while profile := memory.smaller_micro_batch(profile, 30):
        budgets.append((profile.training.tokens_per_batch, profile.training.accumulation))
    assert budgets == [(50, 2), (30, 4)]


def test_long_rows_are_told_of(prepared: dict[str, Any], tmp_path: Path) -> None:
    run = Here(tmp_path, "run", prepared, *QUIET, "training.tokens_per_batch=10", "training.max_steps=2")
    run.train()
    (warned,) = [entry for entry in run.entries(Warn) if entry.code == "training.long_rows"]
    assert "of 27 rows are longer than training.tokens_per_batch (10)" in warned.message


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["training.micro_batch=4"], "training.micro_batch"),
        (
            ["training.micro_batch=1", "method={kind: grpo, reward: {task: triples, metric: triples_f1}}"],
            "training.tokens_per_batch",
        ),
    ],
)
def test_what_does_not_go_together_is_named(changes: list[str], key: str) -> None:
    with pytest.raises(ProfileError) as raised:
        parse(PROFILE.format(base="a/b"), "test", Path("/"), [*changes, "training.tokens_per_batch=100"])
    assert key in [issue.key for issue in raised.value.issues]


def test_a_frozen_profile_can_be_read_again() -> None:
    profile = parse(PROFILE.format(base="a/b"), "test", Path("/"), [*QUIET, "training.tokens_per_batch=100"])
    assert parse(profile.to_yaml(), "frozen", Path("/")).training == profile.training


@pytest.mark.slow
def test_two_ranks_lose_as_one_and_one_goes_on_as_two(start_run: Any) -> None:
    settings = (*QUIET, "training.epochs=2", "adapter.dropout=0", "training.tokens_per_batch=60")
    settings = (*settings, "checkpoint.every_steps=2")
    one = start_run("one", *settings, "training.accumulation=2")
    one.start()
    assert one.wait() == 0, one.log()
    two = start_run("two", *settings, "launch.processes=2")
    two.start(processes=2)
    assert two.wait() == 0, two.log()
    assert two.series("train/loss") == pytest.approx(one.series("train/loss"), rel=1e-4)

    from engine.protocol.journal import Metrics

    moved = start_run("moved", *settings, "training.accumulation=2")
    moved.start()
    moved.until(lambda: len(moved.entries(Metrics)) >= 4)
    moved.process.kill()
    moved.process.wait()
    moved.start(processes=2)
    assert moved.wait() == 0, moved.log()
    assert moved.series("train/loss") == pytest.approx(one.series("train/loss"), rel=1e-3)
    assert not [entry for entry in moved.entries(Warn) if entry.code == "resume.position"]
