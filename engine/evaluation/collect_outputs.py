"""A model's part in an evaluation: what is missing of losses, replies and scores, each on disk as soon as it is there."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.evaluation.dataset import Material, Own, Question
from engine.evaluation.request import NEW_TOKENS, Models, Wanted, Watch
from engine.evaluation.results_store import LOSSES, REPLIES, Record
from engine.models.targets import Target
from engine.prep.verbs.tokenize import choose_loss_on
from engine.tasks import TASKS

if TYPE_CHECKING:
    from engine.inference.loaded_model import Loaded

PAIR_LENGTH = 1024
"""Longest sequence of a pair, in tokens, where no run says."""


@dataclass
class Measuring:
    """One target on its rows. `notes` are what is to be said of it."""

    record: Record
    models: Models
    target: Target
    material: Material
    own: Own | None
    wanted: Wanted
    watch: Watch
    notes: list[str] = field(default_factory=list)

    def language_model(self, questions: list[Question]) -> None:
        """Losses of all rows, and replies to the questions. A model is loaded only for something that is missing."""
        answered = self.record.done(REPLIES)
        asked = [question for question in questions if question.row not in answered]
        if self.record.complete(LOSSES) and not asked:
            return
        loaded = self.models.language_model(self.target, self.wanted.dtype, self.wanted.quantization)
        if not self.record.complete(LOSSES):
            self._lose(loaded)
            self.record.conclude(LOSSES, self.notes)
        if not loaded.templated:
            self.notes.append("the model has no chat template: it went on with each prompt's text")
        self._reply(loaded, asked)

    def reward_model(self) -> None:
        """The scores of all pairs."""
        if self.record.complete(LOSSES):
            return
        measured = self.record.done(LOSSES)
        scorer = self.models.reward_model(self.target)
        length, prompt = self._said("data", "max_length") or PAIR_LENGTH, self._said("method", "max_prompt")
        pairs, lost = scorer.pairs(self.material, length, prompt)
        self.notes += [
            f"{count} of {len(self.material.rows)} pairs were {what}" for what, count in lost.items() if count
        ]
        done = len(measured)
        for tallies in scorer.scores({row: pair for row, pair in pairs.items() if row not in measured}):
            self.record.add(LOSSES, [{"row": row, **tally} for row, tally in tallies.items()])
            done += len(tallies)
            self.watch("scoring", done, len(pairs))
        self.record.conclude(LOSSES, self.notes)

    def _said(self, section: str, key: str) -> Any:
        return self.own.said(section, key) if self.own else None

    def _lose(self, loaded: Loaded) -> None:
        from engine.evaluation import likelihood

        rows = self.material.rows
        if loaded.tokenizer is None or not likelihood.can_render(rows, loaded.tokenizer):
            self.notes.append("loss was not measured: without a chat template a conversation has no tokens to predict")
            return
        measured = self.record.done(LOSSES)
        texts = all("text" in row for row in rows)
        loss_on = self._said("method", "loss_on") or choose_loss_on("auto", {"text"} if texts else ())
        found, lost = likelihood.tokenised(self.material, loaded, loss_on, self._said("data", "max_length"))
        self.notes += [f"{count} of {len(rows)} rows were {what}" for what, count in lost.items() if count]
        missing = {number: row for number, row in found.items() if number not in measured}
        self.watch("losses", len(measured), len(found))

        def told(done: int, _: int) -> None:
            self.watch("losses", len(measured) + done, len(found))

        for tallies in likelihood.losses(loaded.model, missing, told):
            self.record.add(LOSSES, [{"row": row, **tally} for row, tally in tallies.items()])

    def _reply(self, loaded: Loaded, asked: list[Question]) -> None:
        from engine.inference.generate import Reply
        from engine.inference.sampling import Sampling

        fitting = self._fitting(loaded, asked)
        schema = _schema(self.wanted.task) if self.wanted.constrained else None
        sampling = Sampling(max_new_tokens=self.wanted.max_new_tokens or NEW_TOKENS, schema=schema)
        done = 0

        def told(index: int, reply: Reply) -> None:
            nonlocal done
            if reply.finish == "cancelled":
                return
            done += 1
            stopped = reply.finish == "stop"
            self.record.add(REPLIES, [_entry(fitting[index], reply.text, reply.tokens, stopped, reply.seconds)])
            if not self.watch.given_up():
                self.watch("replies", done, len(fitting))

        if fitting:
            self.watch("replies", 0, len(fitting))
            loaded.batch([question.asked for question in fitting], sampling, told, self.watch.given_up)
            self.watch("replies", done, len(fitting))

    def _fitting(self, loaded: Loaded, asked: list[Question]) -> list[Question]:
        """Those that can be answered; the others get an empty reply."""
        fitting: list[Question] = []
        unfit: list[Question] = []
        for question in asked:
            try:
                (fitting if len(loaded.prompt(question.asked)) < loaded.context else unfit).append(question)
            except ValueError as error:
                self.notes.append(f"row {question.row + 1} gets an empty reply: {error}")
                self.record.add(REPLIES, [_entry(question, "", 0, False, None)])
        if unfit:
            self.notes.append(
                f"{len(unfit)} prompts fill the model's context of {loaded.context} tokens: they get an empty reply"
            )
            self.record.add(REPLIES, [_entry(question, "", 0, False, None) for question in unfit])
        return fitting


def _schema(task: str | None) -> dict[str, Any]:
    assert task is not None
    schema: dict[str, Any] = importlib.import_module(TASKS[task]).SCHEMA
    return schema


def _entry(question: Question, reply: str, tokens: int, stopped: bool, seconds: float | None) -> dict[str, Any]:
    return {
        "row": question.row,
        "asked": question.asked,
        "reference": question.reference,
        "reply": reply,
        "tokens": tokens,
        "stopped": stopped,
        "seconds": seconds,
    }
