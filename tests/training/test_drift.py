"""How far a model has moved from its base, against the full divergence computed by the libraries alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Ledger, Warn
from engine.training import drift
from tests.training.in_process import entries, train

DRIFT = ("evaluation.drift=true", "evaluation.at_start=true", "evaluation.every_steps=3", "training.max_steps=6")


def values(run: Any) -> dict[int, dict[str, float]]:
    """The metrics of drift by step."""
    return {
        entry.step: {name: value for name, value in entry.values.items() if "drift" in name}
        for entry in entries(run, Evaluation)
    }


def load(run: Any, base: str, *, full: bool) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = run.checkpoint(6)
    if full:
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "all weights"])
def test_the_divergence_is_that_of_the_libraries(full: bool, prepared: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    changes = (*DRIFT, *(("adapter={kind: none}",) if full else ()))
    run = train(Home(tmp_path), "run", prepared, *changes)
    found = values(run)
    assert found[0]["eval/drift_kl"] == pytest.approx(0, abs=1e-5) and found[0]["eval/drift_changed"] == 0
    assert len(found[6]) == 6
    base = AutoModelForCausalLM.from_pretrained(prepared["base"]).eval()
    model = load(run, prepared["base"], full=full)
    with numpy.load(run.path / drift.FILE) as kept:
        items = json.loads(str(kept["items"]))
    total = count = changed = 0.0
    losses: list[Any] = []
    for item in items:
        ids = torch.tensor([item["ids"]])
        with torch.no_grad():
            first, now = (
                each(input_ids=ids).logits[0, item["start"] - 1 : -1].log_softmax(-1) for each in (base, model)
            )
        total += float((first.exp() * (first - now)).sum())
        count += len(first)
        targets = ids[0, item["start"] :]
        if item["prompt"]:
            assert torch.equal(first.argmax(-1), targets), "the reply kept is the base's own"
            changed += bool((now.argmax(-1) != targets).any())
        else:
            losses.append(-now.gather(-1, targets[:, None]))
    prompts = sum(item["prompt"] for item in items)
    assert prompts == 32 and len(items) == 64
    assert found[6]["eval/drift_kl"] == pytest.approx(total / count, rel=0.02) and total > 0.01
    assert found[6]["eval/drift_changed"] == pytest.approx(changed / prompts)
    assert found[6]["eval/drift_perplexity"] == pytest.approx(float(torch.cat(losses).mean().exp()), rel=0.01)

    # A resumed attempt measures against the same base, and so has the same curve.
    (run.path / "events.jsonl").rename(run.path / "before.jsonl")
    train(Home(tmp_path), "run", prepared, *changes, "training.max_steps=8", from_step=6)
    assert values(run)[8]["eval/drift_kl"] > 0.5 * found[6]["eval/drift_kl"]


def test_numbers_that_are_not_finite_are_no_small_drift() -> None:
    item, size = drift.Item(False, [1, 2, 3], 1), 5
    loop = SimpleNamespace(
        job=SimpleNamespace(
            profile=SimpleNamespace(evaluation=SimpleNamespace(drift=True, drift_limit=0.5, drift_action="stop")),
            tokenizer=object(),
            simulated=False,
        )
    )
    meter = drift.DriftMeter(loop)  # type: ignore[arg-type]
    meter._items = [item]
    meter._kept = [drift.Kept(numpy.zeros((2, 3), dtype="int32"), numpy.full((2, 3), -2.0, dtype="float32"))]
    meter._log_probs = lambda _: torch.full((2, size), torch.nan)  # type: ignore[method-assign]
    divergence = meter._compare(0)[0]
    assert numpy.isnan(divergence)
    assert "drift_limit" in meter.judge({"eval/drift_kl": divergence})


def test_damaged_answers_of_the_base_are_made_again(prepared: dict[str, Any], tmp_path: Path) -> None:
    settings = (*DRIFT, "checkpoint.every_steps=3")
    run = train(Home(tmp_path), "run", prepared, *settings)
    whole = (run.path / drift.FILE).read_bytes()
    (run.path / drift.FILE).write_bytes(whole[: len(whole) // 2])
    train(Home(tmp_path), "run", prepared, *settings, from_step=3)
    assert (run.path / drift.FILE).read_bytes() == whole
    found = [entry.values["eval/drift_kl"] for entry in entries(run, Evaluation) if entry.step == 6]
    assert len(found) == 2 and found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    "adapter", ["{kind: prompt, virtual_tokens: 3}", "{kind: prefix, virtual_tokens: 3}"], ids=["prompt", "prefix"]
)
def test_the_base_answers_without_virtual_tokens(adapter: str, prepared: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = train(Home(tmp_path), "run", prepared, *DRIFT, "training.max_steps=1", f"adapter={adapter}")
    base = AutoModelForCausalLM.from_pretrained(prepared["base"]).eval()
    with numpy.load(run.path / drift.FILE) as kept:
        items = json.loads(str(kept["items"]))
    for item in (each for each in items if each["prompt"]):
        with torch.no_grad():
            logits = base(input_ids=torch.tensor([item["ids"]])).logits[0, item["start"] - 1 : -1]
        assert logits.argmax(-1).tolist() == item["ids"][item["start"] :]


def test_a_limit_warns_or_stops(prepared: dict[str, Any], tmp_path: Path) -> None:
    limit = (*DRIFT, "evaluation.drift_limit=1e-6")
    run = train(Home(tmp_path), "warned", prepared, *limit)
    assert [entry.code for entry in entries(run, Warn) if entry.code == "evaluation.drift"] == ["evaluation.drift"]
    run = train(Home(tmp_path), "stopped", prepared, *limit, "evaluation.drift_action=stop")
    assert [entry.step for entry in entries(run, Ledger) if "drift_limit" in str(entry.new)] == [3]
    assert max(values(run)) == 3 and run.checkpoint_steps() == [3]


def test_bundled_rows() -> None:
    rows = [row for kind in ("prompt", "text") for row in drift.read_rows(kind)]
    assert len({row["text"] for row in rows}) == len(rows) == 64
    assert all(drift.speaks(row["text"], row["language"]) and drift.is_well_formed(row["text"]) for row in rows)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Fine.", True),
        ("好的，明白了。", True),
        ("", False),
        ("Yes<|im_end|>", False),
        ("no no no no no no", False),
        ("是的是的是的是的", False),
        ("Wait...", True),
        ("[INST] what", False),
    ],
)
def test_manners(text: str, good: bool) -> None:
    assert drift.is_well_formed(text) is good
