"""A loaded model behind the interface of EleutherAI's lm-evaluation-harness.

The harness's own class for transformers models does the work, on a model that was loaded here: an adapter, an NF4 base,
a GGUF file. This subclass adds progress, cancelling between batches, and float32 for the softmax of 16-bit logits.
Only imported where the package `lm_eval` is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from lm_eval.models.huggingface import HFLM

from engine.inference.loaded_model import LoadedModel

CPU_BATCH = 8
"""Rows in a batch on a CPU; elsewhere the harness finds the largest batch that fits."""
BATCHES = 4
"""Batches between two reports of progress."""

Item = TypeVar("Item")


class BenchmarkModel(HFLM):  # type: ignore[misc]
    """`progress` gets (kind of request, done, total), and raises when the work is cancelled."""

    def __init__(self, loaded: LoadedModel, progress: Callable[[str, int, int], None]) -> None:
        model = loaded.model
        on_cpu = model.device.type == "cpu"
        # The weights are tied as they were loaded. An adapter may have untied them on purpose.
        model.tie_weights = lambda *_, **__: None
        try:
            super().__init__(
                pretrained=model,
                tokenizer=loaded.tokenizer,
                backend="causal",
                max_length=loaded.context,
                softmax_dtype="float32",
                batch_size=CPU_BATCH if on_cpu else "auto",
            )
        finally:
            del model.tie_weights
        self._progress = progress
        self._piece = BATCHES * (CPU_BATCH if on_cpu else self.max_batch_size)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """`requests` are ((context, continuation), context ids, continuation ids)."""

        def answer(piece: list[Any]) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = super(BenchmarkModel, self)._loglikelihood_tokens(
                piece, disable_tqdm=True, override_bs=override_bs
            )
            return found

        # Requests that differ in their last token alone are answered by one pass, so they stay together.
        order = sorted(
            range(len(requests)),
            key=lambda at: (-len(requests[at][1]) - len(requests[at][2]), requests[at][1], requests[at][2]),
        )
        return self._answer_in_pieces("log-likelihoods", requests, order, answer)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        def answer(piece: list[Any]) -> list[str]:
            found: list[str] = super(BenchmarkModel, self).generate_until(piece, disable_tqdm=True)
            return found

        order = sorted(range(len(requests)), key=lambda at: -len(requests[at].args[0]))
        return self._answer_in_pieces("replies", requests, order, answer)

    def _answer_in_pieces(
        self, kind: str, requests: Sequence[Any], order: list[int], answer: Callable[[list[Any]], list[Item]]
    ) -> list[Item]:
        """Answer requests in `order`, some batches at a time; the answers are in the order of the requests."""
        answers: dict[int, Item] = {}
        for places in _cut(order, self._piece):
            self._progress(kind, len(answers), len(requests))
            answers.update(zip(places, answer([requests[at] for at in places]), strict=True))
        self._progress(kind, len(requests), len(requests))
        return [answers[at] for at in range(len(requests))]


def _cut(order: list[int], length: int) -> Iterator[list[int]]:
    for begin in range(0, len(order), length):
        yield order[begin : begin + length]
