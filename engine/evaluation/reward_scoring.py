"""A reward model's scores of preference pairs, the same as those of evaluation during its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from engine.evaluation.dataset import EvaluationSet
from engine.metrics import preferences
from engine.models import placement, targets, template_lock
from engine.models.targets import Target
from engine.tasks.sufficient_stats import Tally

BATCH = 8
"""Pairs of one forward pass."""


class PairScorer:
    """A reward model that scores both replies of a pair."""

    def __init__(self, target: Target, progress: Callable[[int, int], None]) -> None:
        """Load the model of `target`. Raises ProblemError."""
        import torch

        from engine.inference.scorer import Scorer
        from engine.models import folders
        from engine.models.devices import Device, choose_cpu_dtype
        from engine.options.model import ModelOptions

        stored = {"dtype": target.dtype or "float32", "quantization": target.quantization or "none"}
        options = ModelOptions.model_validate(stored)
        dtype = getattr(torch, options.dtype)
        name = placement.choose(placement.estimate_bytes(Path(target.base), options.dtype))
        device = Device(name, choose_cpu_dtype(dtype) if name == "cpu" else dtype, name)
        targets.check(target, folders.find_weights_problems)
        template_lock.check_target(target)
        folder = target.folder if folders.has_tokenizer(target.folder) else Path(target.base)
        self._scorer = Scorer(target.base, target.adapter, folder, options, device, progress)

    def tokenize_pairs(
        self, dataset: EvaluationSet, max_length: int, max_prompt: int | None
    ) -> tuple[dict[int, dict[str, list[int]]], dict[str, int]]:
        """`prompt_ids`, `chosen_ids` and `rejected_ids` by row number; and how many rows were `truncated`, `masked` or
        `refused`."""
        from engine.prep.token_rows import Counts
        from engine.prep.tokenize_replies import ReplyTokenizer

        counts = Counts()
        replying = ReplyTokenizer(self._scorer.tokenizer, "pairs", max_length, max_prompt)
        batch = replying(dataset.rows, counts)
        found: dict[int, dict[str, list[int]]] = {row: {} for row in batch.rows}
        for name, (values, lengths) in batch.columns.items():
            at = 0
            for row, length in zip(batch.rows, lengths, strict=True):
                found[row][name] = [int(value) for value in values[at : at + length]]
                at += length
        return found, {"truncated": counts.truncated, "masked": counts.masked, "refused": len(batch.refused)}

    def score_pairs(self, pairs: dict[int, dict[str, list[int]]]) -> Iterator[dict[int, Tally]]:
        """The tallies of pairs, a batch at a time."""
        order = sorted(pairs, key=lambda row: sum(map(len, pairs[row].values())))
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            replies = [
                pairs[row]["prompt_ids"] + pairs[row][name] for name in ("chosen_ids", "rejected_ids") for row in some
            ]
            found = self._scorer.scores(replies)
            yield {
                row: preferences.tally(chosen, rejected)
                for row, chosen, rejected in zip(some, found[: len(some)], found[len(some) :], strict=True)
            }
