"""Training on preferences: trl's own losses, however a batch is split; resumed exactly; used everywhere."""

from __future__ import annotations

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start, Warn
from engine.protocol.profile import ProfileError, parse
from tests.training.harness import PROFILE
from tests.training.in_process import entries, series, train
from tests.training.preferences import losses_of, make_scorer, prepare, windows_of

KINDS = {"reward": "pairs", "dpo": "pairs", "orpo": "pairs", "kto": "judged"}
STEPS = 8
BRIEF = ("training.max_steps=8", "evaluation.every_steps=4", "training.rehearsal=false")
FULL = ("adapter={kind: none}", "training.learning_rate=1.0e-3")


@pytest.fixture(scope="module")
def sets(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Method -> prepared.json."""
    scorer = make_scorer(tiny, tmp_path_factory.mktemp("scorer"))
    return {
        method: prepare(tmp_path_factory.mktemp(method), scorer if method == "reward" else tiny, kind)
        for method, kind in KINDS.items()
    }


def settings(config: type, folder: Path, learning_rate: float = 1.0e-2, **more: Any) -> Any:
    """As the harness's profile says them, in trl's words."""
    return config(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=STEPS, learning_rate=learning_rate, warmup_steps=2,
        lr_scheduler_type="cosine", optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=1.0, seed=42, bf16=False,
        gradient_checkpointing=False, use_cpu=True, save_strategy="no", report_to="none", logging_steps=1, disable_tqdm=True,
        remove_unused_columns=False, max_length=None, **more,
    )  # fmt: skip


def adapted(model: Any) -> Any:
    """With the LoRA that the harness's profile asks for, drawn as a run draws it."""
    import torch

    from engine.training.adapters import lora

    torch.manual_seed(42)
    return lora.attach(model, lora.Options(rank=4, alpha=8))


# ── the losses are trl's ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    ("full", "options", "theirs"),
    [
        (False, (), {}),
        (True, (), {}),
        (False, ("method.loss_type=ipo", "method.beta=0.2"), {"loss_type": ["ipo"], "beta": 0.2}),
        (False, ("method.loss_type=robust", "method.label_smoothing=0.1"), {"loss_type": ["robust"], "label_smoothing": 0.1}),
    ],
)  # fmt: skip
def test_dpo_loses_what_trl_loses(
    bare_home: Home, sets: Any, tiny: Path, tmp_path: Path, full: bool, options: Any, theirs: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    run = train(bare_home, "ours", sets["dpo"], "method.kind=dpo", *BRIEF, *options, *(FULL if full else ()))
    ours = [series(run, "train/loss")[step] for step in range(1, STEPS + 1)]
    model = AutoModelForCausalLM.from_pretrained(tiny)
    expected = losses_of(
        DPOTrainer,
        model if full else adapted(model),
        settings(DPOConfig, tmp_path, 1.0e-3 if full else 1.0e-2, **theirs),
        list(windows_of(sets["dpo"], 4, STEPS)),
        AutoTokenizer.from_pretrained(tiny),
    )
    assert ours == pytest.approx(expected, rel=1e-4)
    assert abs(ours[-1] - ours[0]) > 0.01 * ours[0]


@pytest.mark.slow
@pytest.mark.parametrize("centred", [False, True])
def test_reward_loses_what_trl_loses(bare_home: Home, sets: Any, tmp_path: Path, centred: bool) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    options = ("method.center_rewards_coefficient=0.01",) if centred else ()
    run = train(bare_home, "ours", sets["reward"], "method.kind=reward", *BRIEF, *options, *FULL)
    ours = [series(run, "train/loss")[step] for step in range(1, STEPS + 1)]
    batches = [
        [{name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")} for row in window]
        for window in windows_of(sets["reward"], 4, STEPS)
    ]
    expected = losses_of(
        RewardTrainer,
        AutoModelForSequenceClassification.from_pretrained(sets["reward"]["base"]),
        settings(RewardConfig, tmp_path, 1.0e-3, **({"center_rewards_coefficient": 0.01} if centred else {})),
        batches,
        AutoTokenizer.from_pretrained(sets["reward"]["base"]),
    )
    assert ours == pytest.approx(expected, rel=1e-4)
    assert ours[-1] < ours[0]


def test_every_dpo_loss_is_trls(bare_home: Home, sets: Any, tiny: Path, tmp_path: Path) -> None:
    """All losses on one batch, trl's computed by its own method from the same log-probabilities."""
    import typing

    import torch
    from trl import DPOConfig, DPOTrainer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engine.training.methods.dpo import Options
    from engine.training.preference.dpo import LOSSES
    from engine.training.preference.replies import collate_pairs

    names = typing.get_args(Options.model_fields["loss_type"].annotation)
    assert set(names) == set(LOSSES)
    torch.manual_seed(3)
    (rows,) = windows_of(sets["dpo"], 4, 1)
    model, other = AutoModelForCausalLM.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    from datasets import Dataset

    class Theirs(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    trainer = Theirs(
        model=model, ref_model=other, args=settings(DPOConfig, tmp_path, beta=0.3, label_smoothing=0.1),
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(tiny),
    )  # fmt: skip
    batch = trainer.data_collator(rows)
    ours = collate_pairs(rows, flat=False)

    def replies(each: Any) -> Any:
        logits = each(input_ids=ours["input_ids"]).logits.reshape(-1, 64)[ours["picked"]].log_softmax(-1)
        values = logits.gather(1, ours["targets"][:, None])[:, 0]
        return torch.stack([part.sum() for part in values.split(ours["counts"])])

    with torch.no_grad():
        chosen, rejected = (replies(model) - replies(other)).chunk(2)
        tokens = torch.tensor(ours["counts"]).chunk(2)
        for name in names:
            trainer.loss_types, trainer.loss_weights = [name], [1.0]
            smoothing = 0.1 if name in ("robust", "exo_pair") else 0.0
            options = Options(loss_type=name, beta=0.3, label_smoothing=smoothing)
            expected = float(trainer.compute_loss(model, dict(batch)))
            assert float(LOSSES[name](chosen, rejected, *tokens, options).mean()) == pytest.approx(
                expected, rel=1e-4
            ), name
