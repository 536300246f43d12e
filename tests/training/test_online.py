"""Learning from replies that the model writes itself: trl's own losses, whatever rewards them; resumed exactly; refused
where it cannot work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config.profile import ProfileError, parse, pin
from engine.protocol.home import Home
from engine.protocol.journal import Evaluation, Sample, Start
from tests.training.harness import PROFILE
from tests.training.in_process import entries, series, train
from tests.training.online import make_prompts, prepare
from tests.training.preferences import make_scorer

LOWS = ("method.reward={task: lows, metric: lows}",)
SHORT = ("method.generations=4", "method.max_new_tokens=8", "checkpoint.best_by=eval/reward")
FULL = ("adapter={kind: none}", "training.learning_rate=1.0e-3")


@pytest.fixture(autouse=True)
def _lows(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.tasks import TASKS

    monkeypatch.setitem(TASKS, "lows", "tests.training.lows")


@pytest.fixture(scope="module")
def prompts(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return prepare(tmp_path_factory.mktemp("prompts"), tiny)


# ── the losses are trl's ───────────────────────────────────────────────────────────────────────────────────────────


def canned(prompt: list[int], number: int) -> list[int]:
    """A reply that hangs on nothing but the prompt and its own number; two of three end."""
    import random

    generator = random.Random(sum(prompt) * 31 + number)
    words = [generator.randrange(4, 64) for _ in range(generator.randrange(1, 8))]
    return [*words, 1] if number % 3 else words


def rewards_of(replies: list[list[int]]) -> list[float]:
    return [sum(token < 14 for token in reply) / len(reply) + 0.1 * len(reply) for reply in replies]


def trls(kind: str, tiny: Path, folder: Path, batches: list[list[list[int]]], generations: int, **more: Any) -> Any:
    """trl's own trainer of this kind on the tiny model in full, whose sampling gives canned replies. Each of `batches`
    is one step's prompts."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer_class, config = getattr(trl, f"{kind.upper()}Trainer"), getattr(trl, f"{kind.upper()}Config")

    class Theirs(trainer_class):  # type: ignore[misc, valid-type]
        def _generate(self, prompts: list[list[int]]) -> Any:
            replies = [canned(prompt, number % generations) for number, prompt in enumerate(prompts)]
            told = [str(reply) for reply in replies]
            return (prompts, replies, None, told, None, {}, None, []) if kind == "grpo" else (prompts, replies, told)

        def get_train_dataloader(self) -> Any:
            return [[{"prompt": prompt} for prompt in step for _ in range(generations)] for step in batches]

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            loss = super().compute_loss(*arguments, **named)
            self.lost.append(float(loss.detach()))
            return loss

    settings = config(
        output_dir=str(folder), per_device_train_batch_size=generations * len(batches[0]), num_generations=generations,
        max_steps=len(batches), learning_rate=1.0e-3, warmup_steps=2, lr_scheduler_type="cosine",
        optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=1.0, seed=42, bf16=False,
        gradient_checkpointing=False, use_cpu=True, save_strategy="no",
        report_to="none", logging_steps=1, disable_tqdm=True, max_completion_length=8, **more,
    )  # fmt: skip
    theirs = Theirs(
        model=AutoModelForCausalLM.from_pretrained(tiny), args=settings,
        reward_funcs=lambda prompts, completions, completion_ids, **_: rewards_of(completion_ids),
        train_dataset=Dataset.from_list([{"prompt": "w1"}]), processing_class=AutoTokenizer.from_pretrained(tiny),
    )  # fmt: skip
    theirs.lost = []
    return theirs


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("grpo", {}),
        ("grpo", {"loss_type": "grpo", "beta": 0.2, "scale_rewards": "none"}),
        ("grpo", {"loss_type": "dr_grpo", "scale_rewards": "batch", "epsilon_high": 0.3}),
        ("grpo", {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1}),
        ("grpo", {"mask_truncated": True, "beta": 0.1, "temperature": 0.7}),
        ("rloo", {"beta": 0.1, "normalize_advantages": True, "temperature": 1.3}),
        ("rloo", {"mask_truncated": True, "epsilon": 0.05, "beta": 0.3}),
    ],
)
def test_a_loss_is_trls(kind: str, options: Any, tiny: Path, tmp_path: Path) -> None:
    """One step's replies of a model that has moved away from both its reference and the one that sampled."""
    import importlib

    import torch

    from engine.models.loss import PickedHead
    from engine.models.segments import Segments
    from engine.training.metrics import StepMetrics
    from engine.training.online.rollout import Rollout, collate

    names = {"mask_truncated": "mask_truncated_completions"}
    asked = [row["prompt_ids"] for row in make_prompts(3, 5)]
    config = {names.get(name, name): value for name, value in options.items()}
    trainer = trls(kind, tiny, tmp_path, [asked], 4, **{"beta": 0.0, **config})
    model, reference = trainer.model, trainer.ref_model
    torch.manual_seed(3)
    moved = [0.1 * torch.randn_like(parameter) for parameter in model.parameters()]
    for parameter, step in zip(model.parameters(), moved, strict=True):
        parameter.data += step
    model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": each} for each in asked for _ in range(4)])
    replies = [canned(each, number) for each in asked for number in range(4)]

    def values(each: Any, batch: Any) -> Any:
        logits = PickedHead(each, Segments()).logits(each, batch).float() / trainer.temperature
        return logits.log_softmax(-1).gather(1, batch["targets"][:, None])[:, 0]

    method = importlib.import_module(f"engine.training.methods.{kind}").Options(
        reward={"task": "lows", "metric": "lows"}, generations=4, max_new_tokens=8, **options
    )
    ours = importlib.import_module(f"engine.training.online.{kind}")
    found = [
        Rollout(prompt, reply, reply[-1] == 1)
        for prompt, reply in zip([each for each in asked for _ in range(4)], replies, strict=True)
    ]
    plain = object.__new__(getattr(ours, kind.upper()))
    plain.options = method
    plain.metrics = StepMetrics()
    with torch.no_grad():
        batch = collate(found, False, method.mask_truncated)
        old = values(model, batch)
        for answer, each in zip(found, old.split(batch["counts"]), strict=True):
            answer.old = each
        if method.beta:
            for answer, each in zip(found, values(reference, batch).split(batch["counts"]), strict=True):
                answer.reference = each
        scores = torch.tensor(plain.shape_rewards(found, rewards_of(replies)))
        for answer, advantage in zip(found, plain.advantages(scores).tolist(), strict=True):
            answer.advantage = advantage
        assert torch.allclose(torch.tensor([each.advantage for each in found]), inputs["advantages"], atol=1e-4)
        if kind == "grpo":
            width = inputs["completion_ids"].shape[1]
            inputs["old_per_token_logps"] = torch.stack(
                [torch.nn.functional.pad(each, (0, width - len(each))) for each in old.split(batch["counts"])]
            )
        for parameter, step in zip(model.parameters(), moved, strict=True):
            parameter.data += 0.5 * step
        expected = float(trainer._compute_loss(model, inputs))
        batch = collate(found, False, method.mask_truncated)
        summed = ours.compute_losses(values(model, batch), batch, method)
        assert float(summed["clip_ratio"][0]) > 0
        assert float(summed["loss"]) / plain.units(batch) == pytest.approx(expected, rel=1e-4)
        if kind == "grpo" and method.beta:
            total, count = summed["kl"]
            assert float(total / count) == pytest.approx(trainer._metrics["train"]["kl"][-1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_run_loses_what_trl_loses(
    kind: str, bare_home: Home, prompts: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps of full tuning on the same replies: every loss, and the weights at the end."""
    import torch
    from datasets import load_from_disk
    from safetensors.torch import load_file

    from engine.prep.batching import token_counts
    from engine.training.online import method as online
    from engine.training.online.batching import PromptBatches

    def sampled(_: Any, __: Any, asked: list[list[int]], *___: Any) -> list[list[int]]:
        return [canned(prompt, number % 4) for number, prompt in enumerate(asked)]

    def rewarded(_: Any) -> Any:
        return lambda rows, replies: rewards_of(
            [canned(row["prompt_ids"], number % 4) for number, row in enumerate(rows)]
        )

    monkeypatch.setattr(online, "sample_batch", sampled)
    monkeypatch.setattr(online, "make_reward", rewarded)
    run = train(
        bare_home, "ours", prompts, f"method.kind={kind}", *LOWS, *SHORT, *FULL, "method.beta=0.1",
        "training.micro_batch=4", "training.accumulation=2", "training.max_steps=6", "evaluation.samples=0",
    )  # fmt: skip
    rows = load_from_disk(prompts["train"])
    batches_of = PromptBatches(token_counts(rows), 4, 2, 0, 1, 42, 4, 1)
    batches = [[rows[row]["prompt_ids"] for row in batches_of.rows_of(step)] for step in range(6)]
    assert [len(batch) for batch in batches] == [2] * 6
    theirs = trls(kind, tiny, tmp_path, batches, 4, beta=0.1)
    theirs.train()
    ours = series(run, "train/loss")
    assert [ours[step] for step in range(1, 7)] == pytest.approx(theirs.lost, rel=1e-4, abs=1e-6)
    kept = load_file(run.checkpoint(6) / "model.safetensors")
    moved = 0.0
    for name, parameter in theirs.model.named_parameters():
        assert torch.allclose(kept[name], parameter.data, atol=2e-5), name
    from transformers import AutoModelForCausalLM

    for name, parameter in AutoModelForCausalLM.from_pretrained(tiny).named_parameters():
        moved = max(moved, float((kept[name] - parameter).detach().abs().max()))
    assert moved > 1e-3


# ── a run of each ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "beta"), [("grpo", 0.0), ("rloo", 0.05)])
def test_a_reward_is_learnt_and_told(kind: str, beta: float, bare_home: Home, prompts: Any) -> None:
    run = train(
        bare_home, "run", prompts, f"method.kind={kind}", *LOWS, *SHORT, *FULL, f"method.beta={beta}",
        "training.learning_rate=5.0e-3", "training.micro_batch=8", "training.accumulation=2", "training.max_steps=20",
        "evaluation.every_steps=20", "evaluation.at_start=true", "evaluation.samples=4",
    )  # fmt: skip
    first, last = (each.values for each in (entries(run, Evaluation)[0], entries(run, Evaluation)[-1]))
    assert first["eval/reward"] < 0.5 and last["eval/reward"] >= 0.9
    rewards = series(run, "train/reward")
    assert sum(rewards[step] for step in range(16, 21)) > 2 * sum(rewards[step] for step in range(1, 6))
    told = {"reward_std", "reward_zero_std", "completion_length", "completions_cut", "entropy", "clip_ratio"}
    for name in told | ({"kl"} if beta else set()):
        assert len(series(run, f"train/{name}")) == 20, name
    assert 1 <= last["eval/completion_length"] <= 8
    assert entries(run, Start)[0].steps_per_epoch == 6  # 22 prompts, four a step
    samples = [each for each in entries(run, Sample) if each.step == 20]
    assert len(samples) == 4
    for sample in samples:
        words = sample.reply.split()
        assert sample.scores["reward"] == pytest.approx(sum(int(word[1:]) < 10 for word in words) / len(words))
    assert json.loads((run.path / "report.json").read_text())["evaluations"][-1]["values"] == last


def test_a_reward_model_rewards(bare_home: Home, prompts: Any, tiny: Path, tmp_path: Path) -> None:
    """The reward is the score of the whole conversation, as the reward model's own trainer would read it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    scorer = make_scorer(tiny, tmp_path / "scorer")
    from engine.training.online import checks
    from engine.training.online.options import OnlineOptions, RewardOptions

    method = OnlineOptions(kind="grpo", reward=RewardOptions(run=str(scorer)))
    rewarding = checks.describe_reward_model(method, tmp_path, bare_home)
    run = train(
        bare_home, "run", prompts | rewarding, "method.kind=grpo", f"method.reward={{run: {scorer}}}", *SHORT,
        "training.micro_batch=8", "training.max_steps=2", "evaluation.samples=3", "method.beta=0.1",
    )  # fmt: skip
    samples = entries(run, Sample)
    assert len(samples) == 3
    model = AutoModelForSequenceClassification.from_pretrained(scorer)
    model.config.pad_token_id = 0
    tokenizer = AutoTokenizer.from_pretrained(scorer)
    for sample in samples:
        turns = [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.reply}]
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            score = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        assert sample.scores["reward"] == pytest.approx(score, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_run_of_rewards_rewards(bare_home: Home, prompts: Any, tiny: Path, tmp_path: Path) -> None:
    """A LoRA reward run, named as a run and pinned to its checkpoint, makes the model say what it was taught to
    like."""
    from tests.training import preferences

    pairs = preferences.prepare(tmp_path / "pairs", preferences.make_scorer(tiny, tmp_path / "scorer"), "pairs")
    reward = train(
        bare_home, "judge", pairs, "method.kind=reward", "training.max_steps=30", "evaluation.every_steps=30"
    )
    text = PROFILE.format(base=tiny)
    profile = parse(text, "test", Path("/"), ["method.kind=grpo", "method.reward={run: judge}", *SHORT], bare_home)
    profile = pin(profile, bare_home)
    assert profile.method.reward.run == "judge@30"
    from engine.training.online import checks

    rewarding = checks.describe_reward_model(profile.method, Path("/"), bare_home)
    assert rewarding["reward"]["adapter"] == str(reward.checkpoint(30))
    run = train(
        bare_home, "run", prompts | rewarding, "method.kind=grpo", "method.reward={run: judge@30}", *SHORT, *FULL,
        "training.learning_rate=3.0e-3", "training.micro_batch=16", "training.max_steps=20", "evaluation.at_start=true",
        "evaluation.every_steps=20",
    )  # fmt: skip
    first, last = (each.values["eval/reward"] for each in (entries(run, Evaluation)[0], entries(run, Evaluation)[-1]))
    assert last > first + 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("grpo", ("method.iterations=3", "method.beta=0.1", "adapter.dropout=0.2")),
        ("rloo", ()),
        ("rloo", ("method.iterations=2", *FULL)),
    ],
)
def test_a_resumed_run_goes_on_exactly(bare_home: Home, prompts: Any, kind: str, changes: Any) -> None:
    """From steps in the middle of what was sampled, and at its end; with a rehearsal, which leaves no trace."""
    changes = (
        f"method.kind={kind}", *LOWS, *SHORT, *changes, "training.micro_batch=4", "training.accumulation=2",
        "training.max_steps=8", "checkpoint.every_steps=1", "checkpoint.keep=9", "evaluation.every_steps=4",
        "training.rehearsal=true",
    )  # fmt: skip
    run = train(bare_home, "run", prompts, *changes)
    names = ("train/loss", "train/grad_norm", "train/entropy")
    whole = {name: series(run, name) for name in names}
    assert (
        len(set(whole["train/loss"].values())) >= 6
    )  # the first of a warm-up changes nothing, nor do replies of equal reward
    weights = next(run.checkpoint(8).glob("*.safetensors")).name
    kept = (run.checkpoint(8) / weights).read_bytes()
    for step in (4, 3):
        again = train(bare_home, "run", prompts, *changes, from_step=step)
        assert entries(again, Start)[-1].resumed == "exact"
        assert {name: series(again, name) for name in names} == whole
        assert (again.checkpoint(8) / weights).read_bytes() == kept


@pytest.mark.slow
def test_two_ranks_share_the_prompts(start_run: Callable[..., Any], prompts: Any, tiny: Path, tmp_path: Path) -> None:
    """Rewards of both ranks are held against each other, and both end with the same weights as each other."""
    from engine.training.online import checks
    from engine.training.online.options import OnlineOptions, RewardOptions

    scorer = make_scorer(tiny, tmp_path / "scorer")
    method = OnlineOptions(kind="grpo", reward=RewardOptions(run=str(scorer)))
    rewarding = checks.describe_reward_model(method, tmp_path, Home(tmp_path))
    run = start_run(
        "two", "method.kind=grpo", f"method.reward={{run: {scorer}}}", *SHORT, "method.scale_rewards=batch",
        "training.micro_batch=4", "launch.processes=2", "training.max_steps=12", prepared=prompts | rewarding,
    )  # fmt: skip
    run.train(processes=2)
    assert len(run.series("train/reward")) == 12
    assert run.entries(Start)[0].steps_per_epoch == 11
    assert all(each > 0 for each in run.series("train/grad_norm").values())


# ── refusals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        (("method.reward={task: lows}",), "method.reward", "task needs the metric"),
        (("method.reward={task: nothing, metric: f1}",), "method.reward.task", "must be one of"),
        (("method.reward={task: triples, metric: f1}",), "method.reward.metric", "triples_f1"),
        (("method.reward={run: nowhere}",), "method.reward.run", "There is no model 'nowhere'"),
        (("method.reward={run: BASE}",), "method.reward.run", "is no reward model"),
        ((*LOWS, "method.generations=3"), "training.micro_batch", "must be a multiple of method.generations (3)"),
        ((*LOWS, "method.max_new_tokens=64"), "method.max_new_tokens", "must be below data.max_length (64)"),
        ((*LOWS, "data.validation=[{source: triples/dev.jsonl}]"), "checkpoint.best_by", "set it to eval/reward"),
        ((*LOWS, "adapter={kind: prefix}"), "adapter.kind", "prefix does not go with method.kind grpo"),
        ((*LOWS, "data.packing=true"), "data.packing", "cannot be combined with method.kind grpo"),
        ((), "method.reward", "is required"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(changes: Any, key: str, said: str, bare_home: Home, tiny: Path) -> None:
    changes = [
        "method.kind=grpo",
        "method.generations=4",
        "method.max_new_tokens=8",
        *(each.replace("BASE", str(tiny)) for each in changes),
    ]
    with pytest.raises(ProfileError) as caught:
        parse(PROFILE.format(base=tiny), "test", Path("/"), changes, bare_home)
    assert any(issue.key == key and said in issue.message for issue in caught.value.issues), caught.value
