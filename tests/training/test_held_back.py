"""A batch that must not reach the weights is shown and held back, and what is chosen is done, then and after a
resume."""

from __future__ import annotations

import math

import pytest
from safetensors.torch import load_file

from engine.protocol.codes import Pause
from engine.protocol.journal import BadBatch, Ledger, Start, Warn
from tests.training.here import Here, at, one_after_another

STEADY = ("training.max_steps=21", "checkpoint.every_steps=3", "checkpoint.keep=20")


@pytest.fixture
def poison(monkeypatch):
    """`poison(rows, factor)`: the loss of a training pass that holds one of these rows is multiplied, for as long as
    they are trained."""
    from engine.training.supervised import Supervised

    def put(rows: set[int], factor: float) -> None:
        loss, measure = Supervised.loss, Supervised.measure

        def holds(method, batch) -> bool:
            ids = batch["input_ids"].flatten().tolist()
            bad = [method.rows[row]["input_ids"] for row in rows]
            return any(ids[start : start + len(row)] == row for row in bad for start in range(len(ids)))

        def poisoned_loss(self, model, batch, units):
            return loss(self, model, batch, units) * (factor if holds(self, batch) else 1.0)

        def poisoned_measure(self, batch):
            found = measure(self, batch)
            return found | {"loss": found["loss"] * (factor if holds(self, batch) else 1.0)}

        monkeypatch.setattr(Supervised, "loss", poisoned_loss)
        monkeypatch.setattr(Supervised, "measure", poisoned_measure)

    return put


def _row_of(prepared, step: int) -> int:
    """A row of the batch after `step` steps, with the settings of these tests."""
    from datasets import load_from_disk

    from engine.prep.batching import GlobalBatches, token_counts

    return GlobalBatches(token_counts(load_from_disk(prepared["train"])), 4, 1, 0, 1, 42).rows_of(step)[1]


def _when_held(name: str, **arguments):
    """A command for each batch that is held back."""
    given: list[int] = []

    def orders(run):
        if len(given) == len(run.entries(BadBatch)):
            return []
        given.append(1)
        return [(name, arguments)]

    return orders


def _after(known: int, name: str):
    """A command once more batches are held back than are known."""
    return lambda run: [(name, {})] if len(run.entries(BadBatch)) > known else []


def test_skipped_rows_stay_out_and_the_weights_are_spared(tmp_path, prepared, poison):
    bad = _row_of(prepared, 4)
    poison({bad}, math.nan)
    run = Here(tmp_path, "skip", prepared, *STEADY)
    assert run.train(orders=_when_held("continue", choice="skip")) == ("completed", 21)
    (held,) = run.entries(BadBatch)
    assert (held.step, held.code, held.total) == (4, "pause.loss_not_finite", 4)
    assert [row.loss is None for row in held.rows] == [True, False, False, False]
    assert held.rows[0].row == bad and held.rows[0].text.startswith("user w")
    assert "held back" in run.entries(Warn)[-1].message
    ledger = {entry.name: entry for entry in run.entries(Ledger)}
    assert ledger["skip"].step == 4 and bad in ledger["skip"].new and len(ledger["skip"].new) == 4
    assert ledger["pause"].new == "loss not finite"
    losses = run.series("train/loss")
    # The bad row comes again in the second and third epoch; it is not trained there.
    assert losses.pop(5) is None and all(loss is not None for loss in losses.values())

    # What was skipped stays skipped in what goes on from a later checkpoint; before the choice the batch is as bad as
    # it was.
    run.train(from_step=9, orders=at(12, "stop"))
    assert len(run.entries(BadBatch)) == 1 and run.entries(Start)[-1].resumed == "exact"
    assert [run.series("train/loss")[step] for step in (10, 11, 12)] == [losses[step] for step in (10, 11, 12)]
    assert run.train(from_step=3, orders=_after(1, "stop")) == ("stopped", 4)
    assert [entry.step for entry in run.entries(BadBatch)] == [4, 4]


def test_a_resume_after_the_choice_remembers_it(tmp_path, prepared, poison):
    poison({_row_of(prepared, 4)}, math.nan)
    run = Here(tmp_path, "killed", prepared, *STEADY)

    def orders(run):
        if any(entry.name == "skip" for entry in run.entries(Ledger)):
            raise KeyboardInterrupt
        return [("continue", {"choice": "skip"})] if run.entries(BadBatch) else []

    with pytest.raises(KeyboardInterrupt):
        run.train(orders=orders)
    assert run.train() == ("completed", 21)
    assert [entry.step for entry in run.entries(Start)] == [0, 4] and len(run.entries(BadBatch)) == 1


def test_rolled_back_goes_on_from_the_checkpoint_before_without_the_rows(tmp_path, prepared, poison):
    poison({_row_of(prepared, 18)}, 1000.0)
    run = Here(tmp_path, "back", prepared, *STEADY, "limits.loss_spike=20", "training.scheduler=constant")
    faster = at(17, "set", changes={"training.learning_rate": 0.02})
    rollback = _when_held("continue", choice="rollback")
    assert run.train(orders=one_after_another(faster, rollback)) == ("completed", 21)
    # The same row was there in the first and second epoch: a spike needs a history of sixteen steps.
    (held,) = run.entries(BadBatch)
    assert held.code == "pause.loss_spike" and held.step == 18
    assert [(entry.step, entry.resumed) for entry in run.entries(Start)][1:] == [(17, "exact")]
    names = [(entry.step, entry.name, entry.new) for entry in run.entries(Ledger)][-4:]
    rows = [row.row for row in held.rows]
    assert [name[:2] for name in names] == [
        (18, "continue"),
        (17, "rollback"),
        (17, "skip"),
        (17, "training.learning_rate"),
    ]
    assert sorted(names[2][2]) == sorted(rows) and names[3][2] == 0.02
    # Settings stay as they were set.
    rates = run.series("train/learning_rate")
    assert [rates[step] for step in (17, 18, 21)] == [0.01, 0.02, 0.02]
    assert (run.series("train/loss")[19], run.series("train/grad_norm")[19]) == (
        0.0,
        0.0,
    )  # nothing is left of that batch


def test_going_on_drops_what_is_not_finite(tmp_path, prepared, poison):
    poison({_row_of(prepared, 4)}, math.inf)
    run = Here(tmp_path, "on", prepared, *STEADY)
    assert run.train(orders=_when_held("continue")) == ("completed", 21)
    assert len(run.entries(BadBatch)) == 3  # once an epoch: nothing was skipped
    weights = run.run.checkpoint(21) / "adapter_model.safetensors"
    assert all(tensor.isfinite().all() for tensor in load_file(weights).values())


def test_refused_choices_say_why_and_the_pause_goes_on(tmp_path, prepared, poison):
    other = Here(tmp_path, "nothing", prepared, "training.max_steps=2")
    other.train(orders=at(1, "continue", choice="skip"))
    assert "no batch is held back" in other.answers[0].problem.title
    poison({_row_of(prepared, 0)}, math.nan)
    run = Here(tmp_path, "refused", prepared, *STEADY)
    tried = iter(["rollback", "sell", "skip"])

    def orders(run):
        return [("continue", {"choice": next(tried)})] if run.entries(BadBatch) and len(run.answers) < 3 else []

    run.train(orders=orders)
    titles = [answer.problem.title if answer.problem else "" for answer in run.answers]
    assert titles == [
        "there is no checkpoint before step 0: skip the rows instead",
        "there is no choice 'sell': skip or rollback",
        "",
    ]


@pytest.mark.parametrize(("kind", "rows"), [("dpo", "pairs"), ("kto", "judged")])
def test_preference_runs_are_rehearsed_resumed_and_held_back_too(kind, rows, tmp_path, tiny, monkeypatch):
    from engine.training.bad_batch import BadBatchGuard
    from tests.training.preferences import prepare

    prepared = prepare(tmp_path / "pairs", tiny, rows)
    changes = (f"method={{kind: {kind}}}", "training.max_steps=6", "checkpoint.every_steps=2")
    plain = Here(tmp_path, "plain", prepared, *changes, "training.rehearsal=false")
    plain.train()
    run = Here(tmp_path, "dpo", prepared, *changes)
    run.train(orders=at(3, "stop"))
    run.train()
    assert run.entries(Start)[-1].resumed == "exact"
    assert run.series("train/loss") == plain.series("train/loss")

    pause = Pause(code="pause.loss_not_finite", reason="loss not finite")
    monkeypatch.setattr(BadBatchGuard, "_find_fault", lambda self, loss, norm: pause if self._loop.step == 3 else None)
    held = Here(tmp_path, "held", prepared, *changes)
    assert held.train(orders=_when_held("continue", choice="skip")) == ("completed", 6)
    (batch,) = held.entries(BadBatch)
    assert len(batch.rows) == 4 and all(row.loss is not None and row.text and row.tokens for row in batch.rows)
