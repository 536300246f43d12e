"""Rows end to end are rows apart: same logits, and no row sees another."""

from __future__ import annotations

import pytest


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
