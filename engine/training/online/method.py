"""The base of online methods: sample replies to the prompts of a global batch, score them, and learn from them.

Each rank samples all replies to its prompts when a global batch begins, and divides them into as many micro-batches as
the loop expects. With `method.iterations`, the following steps reuse the same replies; checkpoints hold them until
then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from engine.inference.detokenizer import DecodedReply, decode_reply
from engine.inference.generate import sample_batch
from engine.inference.merged_decode import merge_weights
from engine.inference.sampling import Sampling
from engine.models.loss import token_losses
from engine.training.evaluator import PROGRESS_SECONDS, SAMPLES_KEPT
from engine.training.methods.base import Batch, MethodSetup, Row
from engine.training.online import rollout
from engine.training.online.options import OnlineOptions
from engine.training.online.rewards import make_reward
from engine.training.online.rollout import Rollout
from engine.training.preference.reference import ReferenceMethod

DECODED_PER_ROW = 8
"""Replies decoded together per row of a micro-batch: more than one, as no activations are kept for a backward pass."""
_CHUNK = 512
"""Positions whose entropy is computed at the same time."""


class OnlineMethod(ReferenceMethod):
    """Samples, scores and evaluates replies. Subclasses implement `advantages` and `sum_losses`."""

    mergeable = True
    needs_old_log_probs = False
    """Whether a method needs the sampling model's log-probabilities before the loss."""

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.options: OnlineOptions = self.profile.method  # type: ignore[assignment]
        if self.held_out is not None:
            count = min(self.profile.evaluation.samples, len(self.held_out))
            self.held_out = self.held_out.select(range(count)) if count else None
        self._accumulation = setup.batches.accumulation
        self._reward = make_reward(self.job)
        self._rollouts: list[Rollout] | None = None
        """This rank's replies for the current global batch; None outside one."""
        self._samples: list[dict[str, Any]] = []
        """This rank's replies to held-out prompts in the current evaluation, as fields of `journal.Sample`."""
        self._reported = 0.0

    # ── what a method supplies ────────────────────────────────────────────────────────────────────────────────────

    def advantages(self, rewards: Any) -> Any:
        """Advantages from rewards: [replies] of all ranks, those to one prompt adjacent, to [replies]."""
        raise NotImplementedError

    def shape_rewards(self, rollouts: Sequence[Rollout], rewards: list[float]) -> list[float]:
        """The rewards that advantages are computed from."""
        return rewards

    def sum_losses(self, values: Any, batch: Batch) -> dict[str, Any]:
        """`loss`, a sum over the `units` of a micro-batch, with a gradient; further metrics as (sum, count). `values`
        are the log-probabilities of the replies' tokens, [tokens]."""
        raise NotImplementedError

    @property
    def beta(self) -> float:
        return float(self.options.beta)  # type: ignore[attr-defined]

    # ── a global batch ────────────────────────────────────────────────────────────────────────────────────────────

    def collate(self, rows: list[Row]) -> Batch:
        """The prompts, unchanged; tokens are counted once there are replies."""
        return {"prompts": rows, "rows": len(rows), "tokens": 0}

    def units(self, batch: Batch) -> float:
        return len(batch["prompts"] if "prompts" in batch else batch["counts"])

    def begin_global_batch(self, micro_batches: list[Batch], step: int) -> list[Batch]:
        if self._rollouts is None or step % self.options.iterations == 0:
            self._rollouts = self._make_rollouts([row for batch in micro_batches for row in batch["prompts"]])
        shares = rollout.divide([] if self.memory.error else self._rollouts, len(micro_batches))
        self.metrics.tokens += sum(len(each.prompt) + len(each.reply) for share in shares for each in share)
        if (step + 1) % self.options.iterations == 0:
            self._rollouts = None
        return [self._collate_rollouts(share) for share in shares]

    def _collate_rollouts(self, share: Sequence[Rollout]) -> Batch:
        return rollout.collate(share, self.flat, self.options.mask_truncated)

    def _make_rollouts(self, rows: list[Row]) -> list[Rollout]:
        """Sample and score replies to this rank's prompts. The ranks gather their rewards to compute advantages; one
        that ran out of memory contributes none, and reports it at the end of the step."""
        found: list[Rollout] = []
        rewards: list[float] = []
        shaped: list[float] = []
        with self.memory.catch():
            found, rewards = self._sample(rows)
            shaped = self.shape_rewards(found, rewards)
        if self.memory.error:
            found, rewards, shaped = [], [], []
        shares = self.ranks.gather(shaped)
        everyone = torch.tensor([reward for share in shares for reward in share])
        if len(everyone):
            before = sum(map(len, shares[: self.ranks.rank]))
            values = self.advantages(everyone)[before : before + len(found)]
            for each, advantage in zip(found, values.tolist(), strict=True):
                each.advantage = advantage
        self._count_rewards(found, rewards)
        return found

    def _sample(self, rows: list[Row]) -> tuple[list[Rollout], list[float]]:
        options = self.options
        repeated = [row for row in rows for _ in range(options.generations)]
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p)
        self.model.eval()  # with gradient checkpointing, a model in training mode has no KV cache
        try:
            optimized = self.profile.training.optimizations and not self.strategy.sharded
            with merge_weights(self.model) if optimized else nullcontext(), self.strategy.in_step():
                replies = self._generate([row["prompt_ids"] for row in repeated], sampling)
        finally:
            self.model.train()
        rewards = self._score(repeated, replies)
        found = [
            Rollout(row["prompt_ids"], reply, self._is_complete(reply))
            for row, reply in zip(repeated, replies, strict=True)
        ]
        with self.strategy.in_step():
            for share in filter(None, rollout.divide(found, self._accumulation)):
                self._add_log_probs(share)
        return found, rewards

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        """Sample a reply to each prompt, including the token that ends it. The model is in evaluation mode."""
        self.expect_plain_batches()
        with torch.no_grad():
            return sample_batch(
                self.model,
                self.job.tokenizer,
                prompts,
                sampling,
                self.job.prepared["lock"]["eos_token_ids"],
                DECODED_PER_ROW * self.profile.training.rows,
                self._report_progress,
            )

    def _report_progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        reporter = self.job.reporter
        reporter.link.report_progress()
        if now - self._reported > PROGRESS_SECONDS:
            self._reported = now
            reporter.set_phase(reporter.phase_name, f"reply {done} of {total}", done, total)

    def _is_complete(self, reply: list[int]) -> bool:
        return bool(reply) and reply[-1] in self.job.prepared["lock"]["eos_token_ids"]

    def _score(self, rows: Sequence[Row], replies: Sequence[list[int]]) -> list[float]:
        return self._reward(rows, [self._decode(*pair).text for pair in zip(rows, replies, strict=True)])

    def _decode(self, row: Row, reply: list[int]) -> DecodedReply:
        ids = reply[:-1] if self._is_complete(reply) else reply
        return decode_reply(self.job.tokenizer, row["prompt_ids"], ids)

    def _add_log_probs(self, share: Sequence[Rollout]) -> None:
        """Add the log-probabilities that later steps or the divergence from the reference need."""
        batch = self.to_device(self._collate_rollouts(share))
        counts = batch["counts"]
        with torch.no_grad():
            if self.beta:
                for each, values in zip(share, self.reference_values(batch).cpu().split(counts), strict=True):
                    each.reference = values
            if self.options.iterations > 1 or self.needs_old_log_probs:
                old = self.token_log_probs(self.head, self.model, batch)
                for each, values in zip(share, old.cpu().split(counts), strict=True):
                    each.old = values

    def _count_rewards(self, found: Sequence[Rollout], rewards: list[float]) -> None:
        groups = torch.tensor(rewards, dtype=torch.float64).view(-1, self.options.generations)
        deviations = groups.std(1)
        self.metrics.add("train/reward", float(groups.sum()), len(rewards))
        self.metrics.add("train/reward_std", float(deviations.sum()), len(deviations))
        self.metrics.add("train/reward_zero_std", float((deviations == 0).sum()), len(deviations))
        self.metrics.add("train/completion_length", sum(len(each.reply) for each in found), len(found))
        self.metrics.add("train/completions_cut", sum(not each.ended for each in found), len(found))

    # ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────

    def longest_batch(self, rows: list[Row]) -> Batch:
        """A full micro-batch, or one of so many rows, of replies of maximum length to these prompts."""
        reply = [self.job.tokenizer.pad_token_id or 0] * self.options.max_new_tokens
        rows = [rows[index % len(rows)] for index in range(max(len(rows), self.profile.training.rows))]
        found = [Rollout(row["prompt_ids"], reply, True, 1.0) for row in rows]
        self._add_log_probs(found)
        return self._collate_rollouts(found)

    def token_log_probs(self, head: Any, model: Any, batch: Batch) -> Any:
        (losses,) = head.compute(model, batch, self._token_losses)
        return -losses

    def _token_losses(self, logits: Any, targets: Any) -> tuple[Any]:
        """At the sampling temperature."""
        return (token_losses(logits.float() / self.options.temperature, targets),)

    def _losses_and_entropies(self, logits: Any, targets: Any) -> tuple[Any, Any]:
        scaled = logits.float() / self.options.temperature
        with torch.no_grad():
            entropies = torch.cat([entropy(part) for part in scaled.split(_CHUNK)]) if len(scaled) else scaled[:, 0]
        return token_losses(scaled, targets), entropies

    def loss(self, model: Any, batch: Batch, units: float) -> Any:
        losses, entropies = self.head.compute(model, batch, self._losses_and_entropies)
        found = self.sum_losses(-losses, batch)
        loss = found.pop("loss")
        self.metrics.add("train/entropy", float(entropies.sum()), len(entropies))
        for name, (summed, count) in found.items():
            self.metrics.add(f"train/{name}", float(summed), float(count))
        return loss / units

    # ── held-out prompts ──────────────────────────────────────────────────────────────────────────────────────────

    def measure(self, batch: Batch) -> dict[str, float]:
        """Rewards of greedy replies. `loss` is only used to sort the rows of a bad batch."""
        rows = batch["prompts"]
        replies = self._generate([row["prompt_ids"] for row in rows], Sampling(self.options.max_new_tokens))
        rewards = self._score(rows, replies)
        for row, reply, reward in zip(rows, replies, rewards, strict=True):
            raw = self._decode(row, reply).raw
            answer = {"reply": raw, "reference": row["reference"], "scores": {"reward": reward}}
            self._samples.append({"prompt": last_message(row), **answer})
        return {
            "loss": -sum(rewards),
            "reward": sum(rewards),
            "completion_length": float(sum(map(len, replies))),
            "completions_cut": float(sum(not self._is_complete(reply) for reply in replies)),
        }

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in means.items() if name != "loss"}

    def samples(self) -> list[dict[str, Any]]:
        shares = self.ranks.gather(self._samples[:SAMPLES_KEPT])
        self._samples.clear()
        return [each for share in shares for each in share][:SAMPLES_KEPT]

    # ── state ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        return {"rollouts": None if self._rollouts is None else [vars(each) for each in self._rollouts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rollouts = state["rollouts"]
        self._rollouts = None if rollouts is None else [Rollout(**each) for each in rollouts]


def entropy(logits: Any) -> Any:
    """[tokens]: the entropies of the distributions over the vocabulary, in nats."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def last_message(row: Row) -> str:
    """The text of the last message of a prompt."""
    return str(json.loads(row["prompt"])["messages"][-1]["content"])
