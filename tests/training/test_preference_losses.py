"""The losses of methods on preferences are trl's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from tests.training.in_process import series, train
from tests.training.preferences import BRIEF, FULL, STEPS, global_batches, losses_of


def settings(config: type, folder: Path, learning_rate: float = 1.0e-2, **more: Any) -> Any:
    """As the harness's profile says them, in trl's words."""
    return config(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=STEPS, learning_rate=learning_rate,
        warmup_steps=2, lr_scheduler_type="cosine", optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=1.0,
        seed=42, bf16=False, gradient_checkpointing=False, use_cpu=True, save_strategy="no", report_to="none",
        logging_steps=1, disable_tqdm=True, remove_unused_columns=False, max_length=None, **more,
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
        (False, ("method.loss_type=robust", "method.label_smoothing=0.1"),
         {"loss_type": ["robust"], "label_smoothing": 0.1}),
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
        list(global_batches(sets["dpo"], 4, STEPS)),
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
        [{name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")} for row in rows]
        for rows in global_batches(sets["reward"], 4, STEPS)
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
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from engine.training.methods.dpo import Options
    from engine.training.preference.dpo import LOSSES
    from engine.training.preference.replies import collate_pairs

    names = typing.get_args(Options.model_fields["loss_type"].annotation)
    assert set(names) == set(LOSSES)
    torch.manual_seed(3)
    (rows,) = global_batches(sets["dpo"], 4, 1)
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


def test_orpo_loses_what_trl_loses(bare_home: Home, sets: Any, tiny: Path) -> None:
    """The first batch's loss, trl's computed by its own functions. (Its trainer tokenises text itself, otherwise than
    the template.)"""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.experimental.orpo import ORPOTrainer

    (rows,) = global_batches(sets["orpo"], 4, 1)
    run = train(bare_home, "ours", sets["orpo"], "method.kind=orpo", "method.beta=0.3", *BRIEF)
    theirs = object.__new__(ORPOTrainer)
    theirs.__dict__ |= {"beta": 0.3, "is_encoder_decoder": False, "padding_value": 0, "aux_loss_enabled": False}
    theirs.__dict__["accelerator"] = type(
        "", (), {"device": "cpu", "gather_for_metrics": staticmethod(lambda each: each)}
    )
    batch: dict[str, Any] = {}
    for name in ("chosen", "rejected"):
        ids = [torch.tensor(row["prompt_ids"] + row[f"{name}_ids"]) for row in rows]
        labels = [torch.tensor([-100] * len(row["prompt_ids"]) + row[f"{name}_ids"]) for row in rows]
        for key, values, padding in (("input_ids", ids, 0), ("labels", labels, -100)):
            batch[f"{name}_{key}"] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)
        masks = [torch.ones_like(each) for each in ids]
        batch[f"{name}_attention_mask"] = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
    with torch.no_grad():
        loss, told = theirs.get_batch_loss_metrics(AutoModelForCausalLM.from_pretrained(tiny), batch)
    assert series(run, "train/loss")[1] == pytest.approx(float(loss), rel=1e-4)
    assert series(run, "train/nll_loss")[1] == pytest.approx(told["nll_loss"], rel=1e-4)
    assert series(run, "train/rewards_margin")[1] == pytest.approx(told["rewards/margins"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
def test_kto_loses_what_trl_loses(sets: Any, tiny: Path, tmp_path: Path, kind: str) -> None:
    """One batch with the same strange replies, by trl's own trainer."""
    import torch
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    from engine.training.methods.kto import Options
    from engine.training.preference import kto

    rows = [kto.MismatchedRows(load_from_disk(sets["kto"]["train"]))[index] for index in range(8)]
    assert rows[0]["other_ids"] == load_from_disk(sets["kto"]["train"])[-1]["completion_ids"]
    model, other = AutoModelForCausalLM.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    torch.manual_seed(4)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)

    class Theirs(KTOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    from datasets import Dataset

    prepared = [{**row, "KL_completion_ids": row["other_ids"], "label": bool(row["label"][0])} for row in rows]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5, "beta": 0.4, "loss_type": kind}
    theirs = Theirs(
        model=model, ref_model=other, args=settings(KTOConfig, tmp_path, **weights),
        train_dataset=Dataset.from_list(prepared), processing_class=AutoTokenizer.from_pretrained(tiny),
    )  # fmt: skip
    ours = object.__new__(kto.KTO)
    from engine.models.devices import Device
    from engine.models.loss import PickedHead
    from engine.models.segments import Segments
    from engine.training.parallel.single import SingleProcess
    from engine.training.ranks import Ranks

    ours.model, ours._reference, ours.device = model, other, Device("cpu", torch.float32, "a CPU")
    ours.head, ours._reference_head = (PickedHead(each, Segments()) for each in (model, other))
    ours.profile = type("", (), {"method": Options(**weights)})
    ours.strategy = SingleProcess(None, Ranks())
    with torch.no_grad():
        summed = ours._compute_sums(model, kto.collate(rows, flat=False), None)
        expected = float(theirs.compute_loss(model, theirs.data_collator(prepared)))
    assert float(summed["loss"]) / len(rows) == pytest.approx(expected, rel=1e-4)
    told = {name: values[-1] for name, values in theirs._metrics["eval"].items()}
    assert (summed["kl"] > 0) == (kind == "kto") and summed["kl"] / len(rows) == pytest.approx(told["kl"], rel=1e-4)
    assert float(summed["rewards_chosen"] / summed["good"]) == pytest.approx(told["rewards/chosen"], rel=1e-3)
