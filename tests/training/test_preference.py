"""Training on preferences: trl's own losses, however a batch is split; resumed exactly; used everywhere."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Start, Warn
from engine.protocol.messages import ProblemError
from tests.training.in_process import entries, series, train
from tests.training.preferences import global_batches, losses_of, make_scorer, prepare

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
    from engine.models.loss import PickedHead
    from engine.models.segments import Segments

    ours.model, ours._reference = model, other
    ours.head, ours._reference_head = (PickedHead(each, Segments()) for each in (model, other))
    ours.profile = type("", (), {"method": Options(**weights)})
    with torch.no_grad():
        summed = ours._compute_sums(model, kto.collate(rows, flat=False), None)
        expected = float(theirs.compute_loss(model, theirs.data_collator(prepared)))
    assert float(summed["loss"]) / len(rows) == pytest.approx(expected, rel=1e-4)
    told = {name: values[-1] for name, values in theirs._metrics["eval"].items()}
    assert (summed["kl"] > 0) == (kind == "kto") and summed["kl"] / len(rows) == pytest.approx(told["kl"], rel=1e-4)
    assert float(summed["rewards_chosen"] / summed["good"]) == pytest.approx(told["rewards/chosen"], rel=1e-3)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_the_profiles_run(home: Home, name: str) -> None:
    from engine.config.profile import find, load
    from engine.prep.prepare import prepare as prepare_rows
    from engine.protocol.worker_link import Link
    from engine.training import session
    from engine.training.inbox import Inbox
    from engine.training.reporter import Reporter

    brief = ("max_steps=1", "micro_batch=1", "rehearsal=false")
    few = (
        "data.train.0.max_rows=3",
        "data.validation.0.max_rows=1",
        "evaluation.at_start=false",
        "logging.tensorboard=false",
    )
    profile = load(find(name), [*(f"training.{each}" for each in brief), *few], home=home)
    run = home.run(f"{name}-profile")
    run.path.mkdir(parents=True)
    prepared = prepare_rows(profile, home, lambda *_: None)
    run.prepared.write_text(json.dumps(prepared))
    link, inbox = Link(f"ipc://{run.path}/nobody", run.id, 1), Inbox()
    inbox.connect(link)
    try:
        outcome = session.train(run, 1, profile, run.path, None, Reporter(run, 1, link, 0), inbox)
    finally:
        link.close()
    assert outcome == ("completed", 1) and prepared["rows"] == 3
    assert entries(run, Evaluation)[-1].values[f"eval/{'accuracy' if name == 'reward' else 'rewards_accuracy'}"] >= 0


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
