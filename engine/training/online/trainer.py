"""A step of a method that learns from its own replies: answer the window's prompts, have the answers rewarded, learn from them.

The library's loop is that of every method. What is different happens where a window begins: each rank samples its prompts' replies, all of
a step at once, and deals them to as many micro-batches as the library expects. With `method.iterations` the next steps find the same
replies; they go into checkpoints until they are used up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from engine.inference.generate import sample_batch
from engine.inference.merged_decode import folded
from engine.inference.replies import text_of
from engine.inference.sampling import Sampling
from engine.training import memory
from engine.training.assemble import Parts
from engine.training.evaluator import KEPT, TELL, HeldOut
from engine.training.online import answers
from engine.training.online.answers import Answer
from engine.training.online.options import OnlineOptions
from engine.training.online.rewards import reward_of
from engine.training.preference.reference import ReferringTrainer

DECODED = 8
"""Replies decoded together, for each of a micro-batch: nothing is kept for a backward pass."""
_CHUNK = 512
"""Positions whose entropy is computed at one time."""


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Prompts as they are. What a step computes is counted when there are answers."""
    return {"prompts": rows, "rows": len(rows), "tokens": 0}


class OnlineTrainer(ReferringTrainer):
    """Samples, rewards and evaluates. A method says what rewards become (`advantages`) and what a reply loses (`summed`)."""

    foldable = True

    def __init__(self, parts: Parts) -> None:
        self.options: OnlineOptions = parts.job.profile.method  # type: ignore[assignment]
        samples = parts.job.profile.evaluation.samples
        held_out = parts.held_out
        if held_out is not None:
            held_out = held_out.select(range(min(samples, len(held_out)))) if samples else None
        super().__init__(replace(parts, held_out=held_out), collate)
        self._flat = parts.segments is not None
        self.reward = reward_of(self.job)
        self._answers: list[Answer] | None = None
        """This rank's of the window in work."""
        self.answered: list[dict[str, Any]] = []
        """Held-out prompts that this rank has answered in the present evaluation, as fields of `journal.Sample`."""
        self._told = 0.0
        if self._evaluator is not None:
            self._evaluator = Answered(self._evaluator)

    # ── what a method says ────────────────────────────────────────────────────────────────────────────────────────

    def advantages(self, rewards: Any) -> Any:
        """[replies] of all ranks, those of a prompt side by side, to [replies]."""
        raise NotImplementedError

    def rewarded(self, answers: Sequence[Answer], rewards: list[float]) -> list[float]:
        """What a method makes of its own answers' rewards before they are held against each other."""
        return rewards

    def summed(self, values: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """`loss`, a sum over the `units` of a micro-batch, with its gradient; further metrics as (sum, count). `values` are the
        log-probabilities of replies, [tokens]."""
        raise NotImplementedError

    # ── a window ──────────────────────────────────────────────────────────────────────────────────────────────────

    def units(self, batch: dict[str, Any]) -> int:
        return len(batch["prompts"] if "prompts" in batch else batch["counts"])

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        windows, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not windows:
            return windows, 1.0
        if self._answers is None or self.state.global_step % self.options.iterations == 0:
            self._answers = self._answer([row for window in windows for row in window["prompts"]])
        shares = answers.dealt([] if self._exhausted else self._answers, len(windows))
        batches = [self._collated(share) for share in shares]
        self._tally.tokens += sum(len(each.prompt) + len(each.reply) for share in shares for each in share)
        if (self.state.global_step + 1) % self.options.iterations == 0:
            self._answers = None
        return batches, max(self.ranks.sum([sum(self.units(batch) for batch in batches)])[0], 1.0)

    def _collated(self, share: Sequence[Answer]) -> dict[str, Any]:
        return answers.collate(share, self._flat, self.options.mask_truncated)

    def _answer(self, rows: list[dict[str, Any]]) -> list[Answer]:
        """Sampled and rewarded answers to this rank's prompts. Ranks meet to hold rewards against each other; one whose memory was not
        enough has none, and says so when the step ends."""
        found: list[Answer] = []
        rewards: list[float] = []
        try:
            found, rewards = self._sampled(rows)
            scores = self.rewarded(found, rewards)
        except Exception as error:
            if not memory.exhausted(error):
                raise
            self._exhausted = str(error).splitlines()[0] if str(error) else type(error).__name__
            found, rewards, scores = [], [], []
            memory.release()
        shares = self.ranks.gather(scores)
        everyone = torch.tensor([score for share in shares for score in share])
        if len(everyone):
            before = sum(map(len, shares[: self.ranks.rank]))
            values = self.advantages(everyone)[before : before + len(found)]
            for answer, advantage in zip(found, values.tolist(), strict=True):
                answer.advantage = advantage
        self._note_rewards(found, rewards)
        return found

    def _sampled(self, rows: list[dict[str, Any]]) -> tuple[list[Answer], list[float]]:
        options = self.options
        repeated = [row for row in rows for _ in range(options.generations)]
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p)
        self.model.eval()  # with gradient checkpointing a model in training keeps no cache
        try:
            with folded(self.model) if self.profile.training.optimizations else nullcontext():
                replies = self._generated([row["prompt_ids"] for row in repeated], sampling)
        finally:
            self.model.train()
        rewards = self._rewards(repeated, replies)
        found = [
            Answer(row["prompt_ids"], reply, self._ended(reply)) for row, reply in zip(repeated, replies, strict=True)
        ]
        for share in filter(None, answers.dealt(found, self.windows.accumulation)):
            self._look_back(share)
        return found, rewards

    def _generated(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        """Replies with the tokens that ended them. The model is in evaluation mode."""
        self.ordinary()
        with torch.no_grad(), self.compute_loss_context_manager():
            return sample_batch(
                self.model,
                self.job.tokenizer,
                prompts,
                sampling,
                self.job.prepared["lock"]["eos_token_ids"],
                DECODED * self.profile.training.micro_batch,
                self._tell,
            )

    def _tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.voice.link.report_progress()
        if now - self._told > TELL:
            self._told = now
            self.voice.phase(self.voice.phase_name, f"reply {done} of {total}", done, total)

    def _ended(self, reply: list[int]) -> bool:
        return bool(reply) and reply[-1] in self.job.prepared["lock"]["eos_token_ids"]

    def _rewards(self, rows: Sequence[dict[str, Any]], replies: Sequence[list[int]]) -> list[float]:
        with self.compute_loss_context_manager():
            return self.reward(rows, [self._text(reply) for reply in replies])

    def _text(self, reply: list[int]) -> str:
        return text_of(self.job.tokenizer, reply[:-1] if self._ended(reply) else reply)

    def _look_back(self, share: Sequence[Answer]) -> None:
        """Give answers the log-probabilities that later steps, or the divergence from the reference, ask for."""
        batch = self._prepare_inputs(self._collated(share))
        counts = batch["counts"]
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.beta:
                for answer, values in zip(share, self.reference_values(batch).cpu().split(counts), strict=True):
                    answer.reference = values
            if self.options.iterations > 1 or self.asks_old:
                old = self.token_log_probs(self.head, self.model, batch)
                for answer, values in zip(share, old.cpu().split(counts), strict=True):
                    answer.old = values

    asks_old = False
    """Whether a method needs the log-probabilities of the model that sampled before the loss computes them again."""

    @property
    def beta(self) -> float:
        return float(self.options.beta)  # type: ignore[attr-defined]

    def _note_rewards(self, found: Sequence[Answer], rewards: list[float]) -> None:
        grouped = torch.tensor(rewards, dtype=torch.float64).view(-1, self.options.generations)
        deviations = grouped.std(1)
        self.note("train/reward", float(grouped.sum()), len(rewards))
        self.note("train/reward_std", float(deviations.sum()), len(deviations))
        self.note("train/reward_zero_std", float((deviations == 0).sum()), len(deviations))
        self.note("train/completion_length", sum(len(each.reply) for each in found), len(found))
        self.note("train/completions_cut", sum(not each.ended for each in found), len(found))

    # ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        if "prompts" in inputs:  # a rehearsal's, which asks what the longest micro-batch needs
            inputs = self._worst(inputs["prompts"])
        return super().training_step(model, inputs, num_items_in_batch)

    def _worst(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A full micro-batch of replies of the greatest length to these prompts."""
        reply = [self.job.tokenizer.pad_token_id or 0] * self.options.max_new_tokens
        rows = [rows[index % len(rows)] for index in range(self.profile.training.micro_batch)]
        found = [Answer(row["prompt_ids"], reply, True, 1.0) for row in rows]
        self._look_back(found)
        return self._collated(found)

    def token_log_probs(self, head: Any, model: Any, inputs: dict[str, Any]) -> Any:
        return _log_probs(self._logits(head, model, inputs), inputs)

    def _logits(self, head: Any, model: Any, inputs: dict[str, Any]) -> Any:
        """[tokens of replies, vocabulary], at the temperature that replies are sampled at."""
        return head.logits(model, inputs).float() / self.options.temperature

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = self._logits(self.head, model, inputs)
        found = self.summed(_log_probs(logits, inputs), inputs)
        loss = found.pop("loss")
        with torch.no_grad():
            self.note("train/entropy", sum(float(entropy(part).sum()) for part in logits.split(_CHUNK)), len(logits))
        for name, (total, count) in found.items():
            self.note(f"train/{name}", float(total), float(count))
        # DDP takes the mean of the ranks' gradients, and the loss is to be a sum over ranks.
        return loss / num_items_in_batch * self.ranks.world

    # ── held-out prompts ──────────────────────────────────────────────────────────────────────────────────────────

    def measure(self, inputs: dict[str, Any]) -> dict[str, float]:
        """Rewards of greedy replies. The `loss` is what the autopsy of a bad batch puts its rows in order by."""
        rows = inputs["prompts"]
        limit = self.options.max_new_tokens
        replies = self._generated([row["prompt_ids"] for row in rows], Sampling(limit))
        rewards = self._rewards(rows, replies)
        for row, reply, reward in zip(rows, replies, rewards, strict=True):
            said = {"reply": self._text(reply), "reference": row["reference"], "scores": {"reward": reward}}
            self.answered.append({"prompt": asked_text(row), **said})
        return {
            "loss": -sum(rewards),
            "reward": sum(rewards),
            "completion_length": float(sum(map(len, replies))),
            "completions_cut": float(sum(not self._ended(reply) for reply in replies)),
        }

    def held_out_values(self, means: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in means.items() if name != "loss"}

    # ── what goes on in the next step ─────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"answers": self._answers}

    def take_up(self, snapshot: dict[str, Any]) -> None:
        super().take_up(snapshot)
        self._answers = snapshot["answers"]


class Answered:
    """An evaluation whose rewarded replies go to the journal too."""

    def __init__(self, inner: HeldOut) -> None:
        self._inner = inner

    def __call__(self, trainer: OnlineTrainer) -> tuple[dict[str, float], list[dict[str, Any]]]:
        trainer.answered.clear()
        values, samples = self._inner(trainer)
        shown = [each for share in trainer.ranks.gather(trainer.answered[:KEPT]) for each in share]
        return values, samples + shown[:KEPT]

    def rehearse(self, trainer: OnlineTrainer) -> None:
        self._inner.rehearse(trainer)


def _log_probs(logits: Any, inputs: dict[str, Any]) -> Any:
    return -functional.cross_entropy(logits, inputs["targets"], reduction="none")


def entropy(logits: Any) -> Any:
    """[tokens]: of the distributions over the vocabulary, in nats."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def asked_text(row: dict[str, Any]) -> str:
    """The last thing that a prompt says."""
    return str(json.loads(row["prompt"])["messages"][-1]["content"])
