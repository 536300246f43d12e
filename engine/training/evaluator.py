"""Evaluation while training: the held-out loss, and replies scored by the task's metrics. Ranks share the rows."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from engine.evaluation import training_evaluations
from engine.prep.batching import Collate, token_counts
from engine.prep.formats.canonical import conversation_of
from engine.tasks.task import load_task
from engine.training import memory
from engine.training.job import Job

TELL = 2.0
"""Seconds between two words on how generation goes."""
KEPT = 4
"""Replies that are journaled at each evaluation."""


class HeldOut:
    """Called with a trainer at a step boundary; leaves its model in training mode and its random state untouched."""

    _told = 0.0
    """When it last said how generation goes."""

    def __init__(self, job: Job, rows: Any, collate: Collate) -> None:
        """`rows` are None where there are probes alone."""
        self.job, self._collate = job, collate
        lengths = token_counts(rows) if rows is not None else []
        order = sorted(range(len(lengths)), key=lengths.__getitem__)  # neighbours of like length pad little
        mine = order[job.ranks.rank :: job.ranks.world]
        size = 2 * job.profile.training.micro_batch  # no activations are kept for a backward pass
        self._batches = [[rows[row] for row in mine[start : start + size]] for start in range(0, len(mine), size)]
        options = job.profile.evaluation
        task = load_task(options.task) if options.task else None
        self._task = task if options.samples and rows is not None else None
        self._conversations = list(self._read_conversations()) if self._task else []
        self._probes = [task.messages(text) if task else [{"role": "user", "content": text}] for text in options.probes]

    def _read_conversations(self) -> Iterator[tuple[list[dict[str, str]], str]]:
        """The first rows of the task that end with a reply: what is asked, and the reply."""
        assert self._task is not None
        with open(Path(self.job.prepared["validation_rows"]), encoding="utf-8") as file:
            taken = 0
            for line in file:
                row = json.loads(line)
                messages = conversation_of(row)
                if messages and messages[-1]["role"] == "assistant" and self._task.concerns(row.get("columns", {})):
                    yield messages[:-1], messages[-1]["content"]
                    taken += 1
                if taken == self.job.profile.evaluation.samples:
                    return

    def __call__(self, trainer: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics by journal name, and the kept samples as fields of `journal.Sample`."""
        import torch

        from engine.inference.merged_decode import merge_weights

        model = trainer.model
        quicker = merge_weights if self.job.profile.training.optimizations else nullcontext
        model.eval()
        try:
            with torch.no_grad(), self.job.device.autocast(), ExitStack() as stack:
                if trainer.foldable:
                    stack.enter_context(quicker(model))
                values = self._loss(trainer, self._batches)
                trainer.ordinary()
                if self._asked and not trainer.foldable:
                    stack.enter_context(quicker(model))
                replies = self._replies(model, self._asked, self.job.profile.generation.max_new_tokens)
        finally:
            model.train()
        probed = [
            {"prompt": text, "reply": reply, "probe": True}
            for text, reply in zip(self.job.profile.evaluation.probes, replies[len(self._conversations) :], strict=True)
        ]
        if self._task is None:
            return values, probed
        references = [reference for _, reference in self._conversations]
        scores = self._task.score(replies[: len(references)], references)
        self._keep(trainer.state.global_step, replies, values | {f"eval/{name}": scores[name] for name in scores})
        samples = [
            {"prompt": messages[-1]["content"], "reply": reply, "reference": reference}
            for (messages, reference), reply in zip(self._conversations[:KEPT], replies, strict=False)
        ]
        return values | {f"eval/{name}": value for name, value in scores.items()}, probed + samples

    def _keep(self, step: int, replies: Sequence[str], values: dict[str, float]) -> None:
        """All replies with their scores, for whoever looks at the run. What a full disk takes of them is no loss to the run."""
        options, prepared = self.job.profile.evaluation, self.job.prepared
        told = {
            "task": options.task,
            "data": "data.validation",
            "sha256": f"{prepared['hash']} first {options.samples}",
        }
        said = [
            (asked, reference, reply) for (asked, reference), reply in zip(self._conversations, replies, strict=False)
        ]
        if self.job.ranks.rank == 0:
            with suppress(OSError):
                training_evaluations.save(self.job.run, step, told, said, values, options.thresholds)

    @property
    def _asked(self) -> list[list[dict[str, str]]]:
        """What replies are generated for: held-out rows first, then the probes."""
        return [*(messages for messages, _ in self._conversations), *self._probes]

    def rehearse(self, trainer: Any) -> None:
        """The longest rows, and two tokens after the longest prompt: what an evaluation needs at most, without what it tells."""
        import torch

        model = trainer.model
        longest = sorted(self._asked, key=lambda asked: -sum(len(message["content"]) for message in asked))
        model.eval()
        try:
            with torch.no_grad(), self.job.device.autocast():
                self._loss(trainer, self._batches[-1:])
                trainer.ordinary()
                self._replies(model, longest[: self.job.ranks.world], 2)
        finally:
            model.train()

    def _loss(self, trainer: Any, batches: list[list[Any]]) -> dict[str, float]:
        def sums() -> Counter[str]:
            found: Counter[str] = Counter()
            for rows in batches:
                batch = trainer._prepare_inputs(self._collate(rows))
                found["units"] += trainer.units(batch)
                found.update(trainer.measure(batch))
            return found

        whole: Counter[str] = Counter()
        for share in memory.shared(self.job.ranks, sums):  # a rank without rows has no sums
            whole.update(share)
        units = whole.pop("units", 0)
        if not units:
            return {}
        means = {name: total / units for name, total in whole.items()}
        return {f"eval/{name}": value for name, value in trainer.held_out_values(means).items()}

    def _tell(self, done: int, total: int) -> None:
        """Where generation stands, at most once in `TELL` seconds."""
        now = time.monotonic()
        if now - self._told > TELL:
            self._told = now
            self.job.voice.phase("evaluating", f"reply {done} of {total}", done, total)

    def _replies(self, model: Any, conversations: Sequence[list[dict[str, str]]], new: int) -> list[str]:
        """Greedy replies of at most `new` tokens to all conversations, in their order, on every rank."""
        from engine.inference.generate import generate_batch
        from engine.inference.replies import decode_reply

        if not conversations:
            return []
        job = self.job
        asked = conversations[job.ranks.rank :: job.ranks.world]
        prompts = [self._prompt(messages) for messages in asked]
        stops = job.prepared["lock"]["eos_token_ids"]

        def mine() -> list[str]:
            ids = generate_batch(model, job.tokenizer, prompts, new, stops, self._tell) if prompts else []
            return [decode_reply(job.tokenizer, reply) for reply in ids]

        shares = memory.shared(job.ranks, mine)
        return [shares[index % job.ranks.world][index // job.ranks.world] for index in range(len(conversations))]

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids; of a model without a chat template the text as it stands, to be gone on with."""
        from engine.models.template_lock import render

        tokenizer = self.job.tokenizer
        if tokenizer.chat_template:
            return render(tokenizer, messages, reply_follows=True)
        ids: list[int] = tokenizer(messages[-1]["content"]).input_ids
        return ids
