"""Collecting a model's outputs: losses, replies and scores that are still missing, each written to disk at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.evaluation.dataset import EvaluationSet, Question, RunFiles
from engine.evaluation.request import NEW_TOKENS, EvaluationRequest, Models, Watch
from engine.evaluation.results_store import LOSSES, REPLIES, ResultStore, make_entry
from engine.models.targets import Target
from engine.models.template_metadata import read_thinking_marks
from engine.prep.verbs.tokenize import choose_loss_on
from engine.tasks.task import load_task
from engine.tasks.thoughts import MARKS, Marks

if TYPE_CHECKING:
    from engine.inference.loaded_model import LoadedModel

PAIR_LENGTH = 1024
"""Longest sequence of a pair, in tokens, for a model without a run."""


@dataclass
class OutputCollector:
    """Collects the outputs of one target on its rows. `notes` are remarks for the result."""

    store: ResultStore
    models: Models
    target: Target
    dataset: EvaluationSet
    run: RunFiles | None
    request: EvaluationRequest
    watch: Watch
    notes: list[str] = field(default_factory=list)

    def collect_language_model(self, questions: list[Question]) -> None:
        """Losses of all rows, and replies to the questions. The model is loaded only if something is missing."""
        answered = self.store.rows(REPLIES)
        missing = [question for question in questions if question.row not in answered]
        if self.store.is_complete(LOSSES) and not missing:
            return
        loaded = self.models.language_model(self.target, self.request.dtype, self.request.quantization)
        if not self.store.is_complete(LOSSES):
            self._measure_losses(loaded)
            self.store.mark_complete(LOSSES, self.notes)
        if not loaded.templated:
            self.notes.append("the model has no chat template: it continued the text of each prompt")
        self._generate_replies(loaded, missing)

    def collect_reward_scores(self) -> None:
        """A reward model's scores of all pairs."""
        if self.store.is_complete(LOSSES):
            return
        measured = self.store.rows(LOSSES)
        scorer = self.models.reward_model(self.target)
        length, prompt = self._setting("data", "max_length") or PAIR_LENGTH, self._setting("method", "max_prompt")
        pairs, lost = scorer.tokenize_pairs(self.dataset, length, prompt)
        self.notes += [
            f"{count} of {len(self.dataset.rows)} pairs were {what}" for what, count in lost.items() if count
        ]
        done = len(measured)
        for tallies in scorer.score_pairs({row: pair for row, pair in pairs.items() if row not in measured}):
            self.store.add(LOSSES, [{"row": row, **tally} for row, tally in tallies.items()])
            done += len(tallies)
            self.watch("scoring", done, len(pairs))
        self.store.mark_complete(LOSSES, self.notes)

    def _setting(self, section: str, key: str) -> Any:
        return self.run.setting(section, key) if self.run else None

    def _measure_losses(self, loaded: LoadedModel) -> None:
        from engine.evaluation import likelihood

        rows = self.dataset.rows
        if loaded.tokenizer is None or not likelihood.can_render(rows, loaded.tokenizer):
            self.notes.append("loss was not measured: without a chat template a conversation has no tokens to predict")
            return
        measured = self.store.rows(LOSSES)
        texts = all("text" in row for row in rows)
        loss_on = self._setting("method", "loss_on") or choose_loss_on("auto", {"text"} if texts else ())
        rows_found, lost = likelihood.tokenize_rows(self.dataset, loaded, loss_on, self._setting("data", "max_length"))
        self.notes += [f"{count} of {len(rows)} rows were {what}" for what, count in lost.items() if count]
        missing = {number: row for number, row in rows_found.items() if number not in measured}
        self.watch("losses", len(measured), len(rows_found))

        def report(done: int, _: int) -> None:
            self.watch("losses", len(measured) + done, len(rows_found))

        for tallies in likelihood.measure_losses(loaded.model, missing, report):
            self.store.add(LOSSES, [{"row": row, **tally} for row, tally in tallies.items()])

    def _generate_replies(self, loaded: LoadedModel, questions: list[Question]) -> None:
        from engine.inference.generate import Reply
        from engine.inference.sampling import Sampling

        fitting = self._select_fitting(loaded, questions)
        schema = load_task(self.request.task).schema if self.request.constrained and self.request.task else None
        sampling = Sampling(max_new_tokens=self.request.max_new_tokens or NEW_TOKENS, schema=schema)
        marks = _read_marks(loaded)
        done = 0

        def on_reply(index: int, reply: Reply) -> None:
            nonlocal done
            if reply.finish == "cancelled":
                return
            done += 1
            stopped = reply.finish == "stop"
            self.store.add(
                REPLIES,
                [_entry(fitting[index], marks, reply.text, reply.thinking, reply.tokens, stopped, reply.seconds)],
            )
            if not self.watch.is_cancelled():
                self.watch("replies", done, len(fitting))

        if fitting:
            self.watch("replies", 0, len(fitting))
            loaded.batch([question.prompt for question in fitting], sampling, on_reply, self.watch.is_cancelled)
            self.watch("replies", done, len(fitting))

    def _select_fitting(self, loaded: LoadedModel, questions: list[Question]) -> list[Question]:
        """The questions whose prompts fit the model's context; the others get an empty reply."""
        fitting: list[Question] = []
        unfit: list[Question] = []
        marks = _read_marks(loaded)
        for question in questions:
            try:
                (fitting if len(loaded.prompt(question.prompt)) < loaded.context else unfit).append(question)
            except ValueError as error:
                self.notes.append(f"row {question.row + 1} gets an empty reply: {error}")
                self.store.add(REPLIES, [_entry(question, marks)])
        if unfit:
            self.notes.append(
                f"{len(unfit)} prompts fill the model's context of {loaded.context} tokens: they get an empty reply"
            )
            self.store.add(REPLIES, [_entry(question, marks) for question in unfit])
        return fitting


def _read_marks(loaded: LoadedModel) -> Marks:
    return read_thinking_marks(loaded.tokenizer.chat_template) if loaded.tokenizer else MARKS[0]


def _entry(
    question: Question,
    marks: Marks,
    reply: str = "",
    thinking: str = "",
    tokens: int = 0,
    stopped: bool = False,
    seconds: float | None = None,
) -> dict[str, Any]:
    measured = {"tokens": tokens, "stopped": stopped, "seconds": seconds}
    return make_entry(question.row, question.prompt, question.reference, reply, thinking, marks, **measured)
