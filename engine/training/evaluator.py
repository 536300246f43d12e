"""Evaluation during training: the held-out loss, and replies scored by the task's metrics. Ranks share the rows."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.evaluation import training_evaluations
from engine.evaluation.results_store import make_entry
from engine.inference.detokenizer import DecodedReply, decode_reply
from engine.inference.generate import generate_batch
from engine.inference.merged_decode import merge_weights
from engine.models.template_lock import render
from engine.models.template_metadata import choose_template, read_thinking_marks
from engine.prep import first_rows
from engine.prep.batching import token_counts
from engine.prep.formats.canonical import conversation_of
from engine.protocol.journal import Evaluation, Sample
from engine.tasks.task import load_task
from engine.tasks.thoughts import MARKS, drop_thoughts
from engine.training import memory
from engine.training.drift import DriftMeter
from engine.training.early_stopping import Patience
from engine.training.methods.base import take_counts
from engine.training.overfitting import OverfittingDetector
from engine.training.step_benchmarks import StepBenchmarks

if TYPE_CHECKING:
    from engine.training.loop import TrainingLoop

PROGRESS_SECONDS = 2.0
"""Seconds between two reports of generation progress."""
SAMPLES_KEPT = 4
"""Replies that are journaled at each evaluation."""

Conversation = list[dict[str, str]]
T = TypeVar("T")


def _count_padded(rows: list[Any]) -> int:
    """The numbers of a micro-batch's rows, with all rows padded to the longest one."""
    return len(rows) * max(sum(len(v) for v in row.values() if isinstance(v, list)) for row in rows)


class Evaluator:
    """Evaluates at a step boundary; leaves the model in training mode and its random state untouched."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop, self._job, self._method = loop, loop.job, loop.method
        self._options = loop.job.profile.evaluation
        self.results: dict[int, dict[str, Any]] = {}
        """The metrics of each evaluation, by step."""
        stopping = self._options.early_stopping
        self.patience = Patience(stopping) if stopping else None
        self.stop_reason = ""
        """Why the run ends before its last step; empty while it continues."""
        self._overfitting = OverfittingDetector()
        self._reported = 0.0
        rows = self._method.held_out
        self._batches = self._divide_rows(rows) if rows is not None else []
        self.drift = DriftMeter(loop)
        self.benchmarks = StepBenchmarks(loop)
        self._needed = rows is not None or bool(self._options.probes) or self.drift.enabled
        task = load_task(self._options.task) if self._options.task else None
        self._task = task if self._options.samples and rows is not None else None
        self._conversations = list(self._read_conversations()) if self._task else []
        self._marks = read_thinking_marks(loop.job.tokenizer.chat_template) if self._task else MARKS[0]
        self._check_references()
        self._probes: list[Conversation] = [
            task.messages(text) if task else [{"role": "user", "content": text}] for text in self._options.probes
        ]

    def evaluate(self) -> None:
        """Measure the held-out loss and the task's metrics; does nothing without held-out rows and probes, or when this
        step is already evaluated."""
        loop = self._loop
        if not (self._needed or self.benchmarks.is_due()) or loop.step in self.results:
            return
        with loop.reporter.in_phase("evaluating"):
            start = time.perf_counter()
            with loop.averaged_weights():
                values, samples = self._measure()
            self.results[loop.step] = values
            seconds = time.perf_counter() - start
            attempt = loop.job.attempt
            loop.reporter.write(Evaluation(attempt=attempt, step=loop.step, values=values, seconds=seconds))
            for sample in samples:
                loop.reporter.write(Sample(attempt=attempt, step=loop.step, **sample))
            if "eval/loss" in values and (found := self._overfitting.add_evaluation(values["eval/loss"])):
                loop.reporter.warn(
                    code="training.overfitting",
                    step=loop.step,
                    message=found,
                    hint="the model memorises its training rows: stop and use the best checkpoint, add data, or set "
                    "evaluation.early_stopping",
                )

    def check_patience(self) -> None:
        """Count this step's evaluation, if there is one, for early stopping, and compare its drift with the limit."""
        if self._loop.step in self.results:
            self.stop_reason = self.drift.judge(self.results[self._loop.step])
            if self.stop_reason:
                return
        if self.patience and self._loop.step in self.results:
            self.stop_reason = self.patience.update(self._loop.step, self.results[self._loop.step])

    def watch_training_loss(self, loss: Any) -> None:
        """Record a training loss, which overfitting is detected from."""
        self._overfitting.add_training_loss(loss)

    def rehearse(self) -> None:
        """Evaluate the longest rows, and generate two tokens after the longest prompts: the most memory that an
        evaluation needs. Nothing is reported."""
        import torch

        if not self._needed:
            return
        model = self._loop.model
        longest = sorted(self._prompts, key=lambda messages: -sum(len(message["content"]) for message in messages))
        model.eval()
        try:
            with torch.no_grad(), self._job.device.autocast():
                self._held_out_loss(self._batches[-1:])
                self._method.expect_plain_batches()
                self._generate(longest[: self._job.ranks.world], 2)
        finally:
            model.train()

    def longest_rows(self) -> list[Any]:
        """The held-out micro-batch that takes the most memory; empty without held-out rows."""
        return max(self._batches, key=_count_padded, default=[])

    def count_batches(self) -> float:
        """How many times as much all held-out micro-batches of this rank are as the one of `longest_rows`, in tokens
        with padding."""
        sizes = [_count_padded(rows) for rows in self._batches]
        return sum(sizes) / max(sizes, default=1)

    def longest_prompts(self, count: int) -> list[list[int]]:
        """Token ids of the longest prompts that replies are generated for, `count` at most."""
        return sorted(map(self._prompt_ids, self._prompts), key=len, reverse=True)[:count]

    # ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _measure(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Metrics by their journal names, and the samples to journal as fields of `journal.Sample`."""
        import torch

        model, method = self._loop.model, self._method
        optimized = self._job.profile.training.optimizations and not self._loop.strategy.sharded
        model.eval()
        try:
            with torch.no_grad(), self._job.device.autocast(), ExitStack() as stack:
                merged = optimized and method.mergeable and stack.enter_context(merge_weights(model))
                values = self._held_out_loss(self._batches)
                method.expect_plain_batches()
                values |= self.drift.measure()
                values |= self.benchmarks.measure()
                if optimized and self._prompts and not merged:  # rounded weights are for replies alone
                    stack.enter_context(merge_weights(model, rounded=True))
                replies = self._generate(self._prompts, self._job.profile.generation.max_new_tokens)
        finally:
            model.train()
        samples = [
            {"prompt": text, "reply": reply.raw, "probe": True}
            for text, reply in zip(self._options.probes, replies[len(self._conversations) :], strict=True)
        ]
        if self._task is not None:
            references = self._references()
            scores = self._task.score([reply.text for reply in replies[: len(references)]], references)
            values |= {f"eval/{name}": value for name, value in scores.items()}
            self._save_replies(replies, values)
            samples += [
                {"prompt": messages[-1]["content"], "reply": reply.raw, "reference": reference}
                for (messages, reference), reply in zip(self._conversations[:SAMPLES_KEPT], replies, strict=False)
            ]
        return values, samples + method.samples()

    def _held_out_loss(self, batches: list[list[Any]]) -> dict[str, float]:
        """The method's metrics over these rows of this rank together with those of the other ranks."""
        method = self._method

        def sum_up() -> Counter[str]:
            found: Counter[str] = Counter()
            with self._loop.strategy.in_step():
                for rows in batches:
                    batch = method.collate(rows)
                    take_counts(batch)
                    batch = method.to_device(batch)
                    found["units"] += method.units(batch)  # type: ignore[assignment]
                    found.update(method.measure(batch))  # type: ignore[arg-type]
            return found

        whole: Counter[str] = Counter()
        for share in self._compute_on_all(sum_up):  # a rank without rows has no sums
            whole.update(share)
        units = whole.pop("units", 0)
        if not units:
            return {}
        means = {name: total / units for name, total in whole.items()}
        return {f"eval/{name}": value for name, value in method.summarize(means).items()}

    def _compute_on_all(self, compute: Callable[[], T]) -> list[T]:
        """Every rank's result, on every rank."""
        return memory.compute_on_all(self._job.ranks, compute, recovers=not self._loop.strategy.sharded)

    def _divide_rows(self, rows: Any) -> list[list[Any]]:
        """This rank's held-out rows as micro-batches of rows of similar length."""
        job = self._job
        lengths = token_counts(rows)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        mine = order[job.ranks.rank :: job.ranks.world]
        groups = self._loop.batches.group_held_out([lengths[row] for row in mine])
        return [[rows[mine[index]] for index in group] for group in groups]

    # ── replies ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _prompts(self) -> list[Conversation]:
        """The prompts that replies are generated for: held-out conversations first, then the probes."""
        return [*(messages for messages, _ in self._conversations), *self._probes]

    def _read_conversations(self) -> Iterator[tuple[Conversation, str]]:
        """The first rows of the task that end with a reply: the messages before it, and the reply."""
        assert self._task is not None
        with open(Path(self._job.prepared["validation_rows"]), encoding="utf-8") as file:
            taken = 0
            for line in file:
                row = json.loads(line)
                messages = conversation_of(row)
                if messages and messages[-1]["role"] == "assistant" and self._task.concerns(row.get("columns", {})):
                    yield messages[:-1], messages[-1]["content"]
                    taken += 1
                if taken == self._options.samples:
                    return

    def _references(self) -> list[str]:
        """The replies of the held-out rows, without thinking."""
        return [drop_thoughts(reference, (self._marks, *MARKS)) for _, reference in self._conversations]

    def _check_references(self) -> None:
        """Raises ProblemError for a held-out reply that the task cannot score, before the first step."""
        for number, reference in enumerate(self._references()):
            assert self._task is not None
            try:
                self._task.tally("", reference)
            except ValueError as error:
                raise first_rows.misfit(f"the reply of held-out row {number + 1} {error}", str(self._options.task))

    def _generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[DecodedReply]:
        """Greedy replies to all conversations, in their order, on every rank."""
        if not conversations:
            return []
        job = self._job
        prompts = [self._prompt_ids(messages) for messages in conversations[job.ranks.rank :: job.ranks.world]]
        stops = job.prepared["lock"]["eos_token_ids"]

        def generate_mine() -> list[DecodedReply]:
            model, tokenizer = self._loop.model, job.tokenizer
            with self._loop.strategy.in_step():
                ids = (
                    generate_batch(model, tokenizer, prompts, max_new_tokens, stops, self._report_progress)
                    if prompts
                    else []
                )
            return [decode_reply(tokenizer, prompt, reply) for prompt, reply in zip(prompts, ids, strict=True)]

        shares = self._compute_on_all(generate_mine)
        return [shares[index % job.ranks.world][index // job.ranks.world] for index in range(len(conversations))]

    def _prompt_ids(self, messages: Conversation) -> list[int]:
        """Token ids of a prompt; without a chat template, of its last message's text, which the model continues."""
        tokenizer = self._job.tokenizer
        if choose_template(tokenizer.chat_template):
            return render(tokenizer, messages, reply_follows=True)
        ids: list[int] = tokenizer(messages[-1]["content"]).input_ids
        return ids

    def _report_progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._reported > PROGRESS_SECONDS:
            self._reported = now
            self._loop.reporter.set_phase("evaluating", f"reply {done} of {total}", done, total)

    def _save_replies(self, replies: Sequence[DecodedReply], values: dict[str, float]) -> None:
        """Store all replies with their scores in the run's directory. They may be lost on a full disk; the run does not
        need them."""
        options, prepared = self._options, self._job.prepared
        request = {
            "task": options.task,
            "data": "data.validation",
            "sha256": f"{prepared['hash']} first {options.samples}",
        }
        rows = [
            make_entry(row, messages, reference, reply.text, reply.thinking, self._marks)
            for row, ((messages, reference), reply) in enumerate(zip(self._conversations, replies, strict=False))
        ]
        if self._job.ranks.rank == 0:
            with suppress(OSError):
                training_evaluations.save(self._job.run, self._loop.step, request, rows, values, options.thresholds)
