"""Training on preferences: alike however a batch is split, resumed exactly, and what it leaves is used everywhere."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start, Warn
from engine.protocol.messages import ProblemError
from tests.training.in_process import entries, series, train
from tests.training.preferences import BRIEF, FULL, KINDS, STEPS

# ── a run of each ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_a_loss_does_not_hang_on_how_a_batch_is_split(bare_home: Home, sets: Any, method: str) -> None:
    losses = {}
    for micro_batch, accumulation in ((4, 1), (1, 4)):
        run = train(
            bare_home, f"{method}-{micro_batch}", sets[method], f"method.kind={method}", *BRIEF,
            f"training.micro_batch={micro_batch}", f"training.accumulation={accumulation}",
        )  # fmt: skip
        losses[micro_batch] = series(run, "train/loss")
    assert losses[1] == pytest.approx(losses[4], rel=1e-3) and len(losses[1]) == STEPS


@pytest.mark.slow
def test_two_ranks_lose_as_one(start_run: Any, bare_home: Home, sets: Any) -> None:
    for method in ("kto", "orpo"):
        one = train(bare_home, f"{method}-one", sets[method], f"method.kind={method}", *BRIEF)
        two = start_run(
            f"{method}-two",
            f"method.kind={method}",
            *BRIEF,
            "training.micro_batch=2",
            "launch.processes=2",
            prepared=sets[method],
        )
        two.train(processes=2)
        for name in ("train/loss", "train/grad_norm", "train/rewards_accuracy"):
            assert two.series(name) == pytest.approx(series(one, name), rel=1e-3, abs=1e-6), (method, name)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("method", KINDS)
def test_a_resumed_run_goes_on_exactly(bare_home: Home, sets: Any, method: str, full: bool) -> None:
    changes = (
        f"method.kind={method}",
        *BRIEF,
        "checkpoint.every_steps=4",
        *(FULL if full else ("adapter.dropout=0.2",)),
    )
    run = train(bare_home, "run", sets[method], *changes)
    whole = {name: series(run, name) for name in ("train/loss", "train/grad_norm", "train/learning_rate")}
    held_out = entries(run, Evaluation)[-1].values
    weights = "model.safetensors" if full else "adapter_model.safetensors"
    kept = (run.checkpoint(STEPS) / weights).read_bytes()
    again = train(bare_home, "run", sets[method], *changes, from_step=4)
    starts = entries(again, Start)
    assert [start.step for start in starts] == [0, 4]
    assert {name: series(again, name) for name in whole} == whole
    assert (again.checkpoint(STEPS) / weights).read_bytes() == kept
    assert entries(again, Evaluation)[-1].values == held_out
    assert any(each.code == "adapter.dropout_ignored" for each in entries(run, Warn)) != full


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(start_run: Any, sets: Any) -> None:
    changes = ("method.kind=dpo", "training.max_steps=30", "checkpoint.every_steps=5")
    whole = start_run("whole", *changes, prepared=sets["dpo"])
    whole.train()
    broken = start_run("broken", *changes, prepared=sets["dpo"])
    broken.start()
    broken.until(lambda: len(broken.series("train/loss")) >= 12)
    broken.process.send_signal(signal.SIGKILL)
    broken.process.wait()
    broken.train()
    assert broken.entries(Start)[-1].step in (10, 15, 20, 25)
    for name in ("train/loss", "train/grad_norm", "train/rewards_margin"):
        assert broken.series(name) == whole.series(name)


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_preferences_are_learnt_and_told(bare_home: Home, sets: Any, method: str) -> None:
    accuracy = "accuracy" if method == "reward" else "rewards_accuracy"
    margin = "margin" if method == "reward" else "rewards_margin"
    run = train(
        bare_home, "run", sets[method], f"method.kind={method}", "training.rehearsal=true", "training.max_steps=60",
        "evaluation.at_start=true", "evaluation.every_steps=60", *(("method.beta=1",) if method == "orpo" else ()),
    )  # fmt: skip
    first, last = entries(run, Evaluation)[0].values, entries(run, Evaluation)[-1].values
    assert last["eval/loss"] < first["eval/loss"]
    assert last[f"eval/{accuracy}"] >= 0.8 and last[f"eval/{margin}"] > max(0.0, first.get(f"eval/{margin}", 0.0))
    assert series(run, f"train/{accuracy}")[60] >= 0.75
    if method in ("dpo", "kto"):  # before the first step the model is its reference
        assert first["eval/loss"] == pytest.approx({"dpo": 0.6931, "kto": 0.5}[method], rel=1e-3)


# ── what a run leaves ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_a_reward_model_scores_in_plain_transformers_and_is_refused_for_chat(
    bare_home: Home, sets: Any, full: bool
) -> None:
    import torch
    from datasets import load_from_disk
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from engine.inference.loaded_model import load as load_for_chat
    from engine.models import folders

    run = train(bare_home, "scorer", sets["reward"], "method.kind=reward", *BRIEF, *(FULL if full else ()))
    folder = run.checkpoint(STEPS)
    if full:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(sets["reward"]["base"], num_labels=1)
        before = base.score.weight.clone()
        model = PeftModel.from_pretrained(base, folder)
        assert not torch.equal(model.score.modules_to_save["default"].weight, before)
    right, loss = [], []
    for row in load_from_disk(sets["reward"]["validation"]):
        with torch.no_grad():
            chosen, rejected = (
                model(input_ids=torch.tensor([row["prompt_ids"] + row[name]])).logits.item()
                for name in ("chosen_ids", "rejected_ids")
            )
        right.append(chosen > rejected)
        loss.append(-torch.nn.functional.logsigmoid(torch.tensor(chosen - rejected)).item())
    told = entries(run, Evaluation)[-1].values
    assert told["eval/accuracy"] == pytest.approx(sum(right) / len(right))
    assert told["eval/loss"] == pytest.approx(sum(loss) / len(loss), rel=1e-4)
    assert folders.is_reward_model(folder) and not folders.is_reward_model(Path(sets["dpo"]["base"]))
    with pytest.raises(ProblemError, match="is a reward model: it scores replies and generates none"):
        load_for_chat(str(folder), home=bare_home)


@pytest.mark.slow
def test_dpo_on_an_nf4_base_with_a_model_that_answers(bare_home: Home, sets: Any) -> None:
    """The reference is the NF4 base without its adapter; an evaluation in between leaves training as it is; chat
    answers."""
    from engine.inference.loaded_model import load as load_for_chat
    from engine.inference.sampling import Sampling

    changes = ("method.kind=dpo", *BRIEF, "model.quantization=nf4", "training.scheduler=constant", "training.warmup=0")
    run = train(bare_home, "nf4", sets["dpo"], *changes, "evaluation.at_start=true")
    first, last = entries(run, Evaluation)[0].values, entries(run, Evaluation)[-1].values
    assert first["eval/loss"] == pytest.approx(0.6931, rel=1e-3) and first["eval/rewards_margin"] == pytest.approx(
        0, abs=1e-4
    )
    assert last["eval/rewards_margin"] > 0.01
    told = load_for_chat(str(run.checkpoint(STEPS)), home=bare_home)
    reply = told.generate([{"role": "user", "content": "w1 w2"}], Sampling(max_new_tokens=4, temperature=0.0))
    assert reply.tokens > 0


def test_what_does_not_go_with_a_preference_method_is_refused(home: Home) -> None:
    from engine.config.profile import ProfileError, parse
    from tests.training.harness import PROFILE

    text = PROFILE.format(base="smollm2-135m-instruct")
    for change, message in {
        (
            "method.kind=dpo",
            "data.packing=true",
        ): "data.packing: cannot be combined with method.kind dpo: its rows cannot be joined",
        (
            "method.kind=dpo",
            "method.label_smoothing=0.1",
        ): "label_smoothing is for loss_type robust and exo_pair, not for sigmoid",
        ("method.kind=dpo", "method.loss_type=exo_pair"): "loss_type exo_pair needs a label_smoothing above 0",
        ("method.kind=dpo", "method.loss_type=aot"): "method.loss_type: must be sigmoid, hinge",
        (
            "method.kind=reward",
            "evaluation.task=triples",
            "data.validation=[{source: triples/dev.jsonl}]",
        ): "evaluation.task: does not go with method.kind reward",
    }.items():
        with pytest.raises(ProfileError) as error:
            parse(text, "test", Path("/"), change, home)
        assert message in str(error.value), str(error.value)
