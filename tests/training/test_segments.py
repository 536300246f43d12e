"""Rows end to end are rows apart: same logits, and no row sees another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from engine.config.profile import parse
from tests.training.harness import PROFILE


@pytest.mark.slow
def test_rows_end_to_end_have_the_logits_of_rows_alone(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    from engine.models.loss import PickedHead
    from engine.models.segments import Segments, can_use_segments
    from engine.prep.batching import collate_flat, collate_padded
    from tests.training.harness import make_rows

    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    rows = make_rows(5, 3)
    segments = Segments()
    assert can_use_segments(model)
    plain = AutoModelForCausalLM.from_pretrained(tiny).eval()
    segments.install(model)
    head, padded = PickedHead(model, segments), PickedHead(plain, Segments())
    packed = {
        "input_ids": rows[0]["input_ids"] + rows[1]["input_ids"],
        "labels": rows[0]["labels"] + rows[1]["labels"],
        "seq_lengths": [len(rows[0]["input_ids"]), len(rows[1]["input_ids"])],
    }
    with torch.no_grad():
        flat = head.logits(model, collate_flat(rows))
        assert torch.allclose(flat, padded.logits(plain, collate_padded(rows)), atol=1e-5)
        assert torch.allclose(flat, head.logits(model, collate_flat([packed, *rows[2:]])), atol=1e-5)
        changed = [{**rows[0], "input_ids": [5] * len(rows[0]["input_ids"])}, *rows[1:]]
        own = len(collate_flat(rows[:1])["targets"])
        after = head.logits(model, collate_flat(changed))
        assert torch.equal(after[own:], flat[own:]) and not torch.allclose(after[:own], flat[:own])
        segments.lengths = None
        ids = torch.tensor([rows[0]["input_ids"]])
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-5)
    with pytest.raises(ValueError, match="packed"):
        collate_padded([packed])


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_whose_rows_cannot_be_joined_pads_them_and_says_so(packed, prepared, tmp_path, monkeypatch):
    from engine.protocol.home import Home
    from engine.protocol.journal import Warn
    from engine.protocol.messages import ProblemError
    from engine.training import assemble
    from tests.training.in_process import entries, series, train

    monkeypatch.setattr(assemble, "prove", lambda *_: "joined rows differ from rows alone by 0.4")
    steps = ("training.max_steps=2",)
    if packed:
        monkeypatch.setattr(assemble, "can_use_segments", lambda _: True)
        job = SimpleNamespace(profile=parse(PROFILE.format(base=prepared["base"]), "test", Path("/"), steps))
        job.device = SimpleNamespace(kind="cpu", compute=None)
        job.simulated = False
        with pytest.raises(ProblemError, match="differ from rows alone"):
            assemble._make_segments(job, AutoModelForCausalLM.from_pretrained(prepared["base"]), joined=True)
        return
    run = train(Home(tmp_path), "run", prepared, *steps)
    plain = train(Home(tmp_path), "plain", prepared, *steps, "training.optimizations=false")
    assert [entry.code for entry in entries(run, Warn) if "padded" in entry.code] == ["data.rows.padded"]
    assert list(series(run, "train/loss").values()) == pytest.approx(
        list(series(plain, "train/loss").values()), rel=1e-4
    )


def test_nothing_is_trained_across_the_border_of_two_rows():
    from engine.prep.batching import collate_flat

    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}]
    batch = collate_flat(rows)
    assert batch["picked"].tolist() == [0, 1, 3] and batch["targets"].tolist() == [2, 3, 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert collate_flat([])["targets"].tolist() == []


def test_pooled_dropout_drops_its_share_and_keeps_the_mean():
    import torch

    from engine.training.dropout import Pool, PooledDropout

    torch.manual_seed(0)
    pool = Pool(0.25, 100)
    layer = PooledDropout(pool)
    pool.renew(layer, (), {"input_ids": torch.zeros(1, 50)})
    x = torch.ones(50, 100)
    first, second = layer(x), layer(x)
    assert abs((first == 0).float().mean() - 0.25) < 0.03 and abs(first.mean() - 1) < 0.03
    assert not first.equal(second)
    assert layer.eval()(x) is x
