"""The training rows of a run that were learnt worst, from its ledger of rows: likely label errors first.

A row's loss depends on when in the run it was seen, so it is compared with the rows that were seen at about the same
time: its score in an epoch is its distance from their median, in units of their usual deviation. A wrong answer stays
far above it, epoch after epoch (Arpit et al. 2017, A Closer Look at Memorization: networks learn simple patterns first
and memorise exceptions later), so the mean over all epochs ranks likely label errors.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.prep import row_places
from engine.prep.token_parts import TokenParts
from engine.prep.token_rows import MASKED
from engine.storage.row_losses import read_blocks

ORDERS = ("error", "loss", "rise", "never-learnt")
"""What rows can be ordered by."""
_TOGETHER = 16
"""Rows whose median is the usual loss of their time: few, because in a run's first steps it falls by half in twenty
rows. Their usual deviation, which changes less, is that of twice as many."""
_ALIKE = 0.5
"""Jaccard similarity of two prompts from which they are near duplicates."""
_SHARED = 0.1
"""A pair of tokens that more than this share of the rows have says nothing about whether two prompts are alike."""


@dataclass
class WorstRow:
    """A training row: its place (line 0 where it is unknown), its mean losses per trained token in each epoch, and its
    text as the model sees it, up to the first trained token and from there."""

    score: float
    losses: list[float | None]
    prompt: str
    answer: str
    file: str = ""
    line: int = 0
    file_number: int = -1
    part: int = 0
    alike: list[dict[str, Any]] = field(default_factory=list)
    """Rows with nearly the same prompt and another answer: `file`, `line`, `similarity`, `answer`."""

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "line": self.line,
            "score": round(self.score, 4),
            "losses": [None if loss is None else round(loss, 4) for loss in self.losses],
            "prompt": self.prompt,
            "answer": self.answer,
            "alike": self.alike,
        }


@dataclass(frozen=True)
class RowLosses:
    """What a run's ledger has: for each source row its losses and scores, [epochs, rows], NaN where it was not trained.
    `parts` is one part of each row in the token set, and `places` their (file, line), None where they are unknown."""

    losses: Any
    scores: Any
    parts: Any
    places: Any


def read_losses(folder: Path, train: Path, tokens: TokenParts) -> RowLosses:
    """The ledger in `folder` of a run that trained on the set `train`; parts of one source row are taken together.
    Raises ValueError where there is none."""
    import numpy

    blocks = read_blocks(folder)
    if not blocks:
        raise ValueError("the run has recorded no losses of rows")
    epochs = 1 + max(block.epoch for block in blocks)
    shape = (epochs, len(tokens))
    tables = [numpy.full(shape, numpy.nan, dtype=numpy.float32) for _ in range(2)]
    rows = numpy.concatenate([block.rows for block in blocks])
    losses = numpy.concatenate([block.losses for block in blocks]).astype(numpy.float32)
    epoch = numpy.repeat([block.epoch for block in blocks], [len(block.rows) for block in blocks])
    known = rows < len(tokens)
    for table, values in zip(tables, (losses, compare(losses)), strict=True):
        table[epoch[known], rows[known]] = values[known]
    places = row_places.read(train.parent)
    if places is None or len(places) != len(tokens):
        return RowLosses(tables[0], tables[1], numpy.arange(len(tokens)), None)
    unique, first, of_row = numpy.unique(places, axis=0, return_index=True, return_inverse=True)
    weights = numpy.maximum(tokens.count_trained(), 1)
    joined = [_join(table, of_row.reshape(-1), len(unique), weights) for table in tables]
    return RowLosses(joined[0], joined[1], first, unique)


def compare(losses: Any) -> Any:
    """The scores of losses in the order in which their rows were trained."""
    import numpy

    distances = losses - _follow(losses, _TOGETHER)
    return distances / numpy.maximum(1.4826 * _follow(abs(distances), 2 * _TOGETHER), 1e-3)


def _follow(values: Any, together: int) -> Any:
    """The medians of so many neighbouring values, and between their middles what lies between them."""
    import numpy

    groups = max(1, round(len(values) / together))
    bounds = [index * len(values) // groups for index in range(groups + 1)]
    pairs = list(itertools.pairwise(bounds))
    middles = [(begin + end - 1) / 2 for begin, end in pairs]
    return numpy.interp(numpy.arange(len(values)), middles, [_median(values[begin:end]) for begin, end in pairs])


def _median(values: Any) -> float:
    import numpy

    finite = values[numpy.isfinite(values)]
    return float(numpy.median(finite)) if len(finite) else 0.0


def _join(table: Any, of_row: Any, rows: int, weights: Any) -> Any:
    """The means of the parts of each row."""
    import numpy

    joined = numpy.full((len(table), rows), numpy.nan, dtype=numpy.float32)
    for epoch, values in enumerate(table):
        there = ~numpy.isnan(values)
        total = numpy.bincount(of_row[there], weights[there], rows)
        sums = numpy.bincount(of_row[there], values[there] * weights[there], rows)
        joined[epoch, total > 0] = sums[total > 0] / total[total > 0]
    return joined


def rank(found: RowLosses, by: str) -> tuple[Any, Any]:
    """The rows in the order `by`, the worst first, and the score of each row. Rows without a score are left out.
    Raises ValueError when the run is too short for this order."""
    import numpy

    table = found.losses
    last = _last(table)
    if by == "error":
        known = numpy.isfinite(found.scores)
        counts = known.sum(axis=0)
        score = numpy.where(
            counts, numpy.where(known, found.scores, 0).sum(axis=0) / numpy.maximum(counts, 1), numpy.nan
        )
    elif by == "loss":
        score = last
    elif by == "never-learnt":
        score = numpy.fmin.reduce(table, axis=0)
    else:
        if len(table) < 2:
            raise ValueError("a rise shows from the second epoch on: this run has one")
        score = last - numpy.fmin.reduce(table, axis=0)
    order = numpy.argsort(-numpy.nan_to_num(score, nan=-numpy.inf), kind="stable")
    return order[numpy.isfinite(score[order])], score


def _last(table: Any) -> Any:
    """The latest known loss of each row."""
    import numpy

    last = table[0].copy()
    for values in table[1:]:
        known = ~numpy.isnan(values)
        last[known] = values[known]
    return last


def split_row(tokens: TokenParts, part: int, tokenizer: Any) -> tuple[str, str]:
    """The text of a part up to its first trained token, and from there."""
    ids, labels = tokens.take(part)
    first = next((at for at, label in enumerate(labels) if at and label != MASKED), len(ids))
    return tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:])


def find_alike(tokens: TokenParts, chosen: list[int], most: int = 3) -> dict[int, list[tuple[int, float]]]:
    """For each chosen part the parts with nearly the same prompt and another answer, the most similar first, with
    their similarity."""
    import numpy

    prompts = [_pairs(*tokens.take(part)) for part in chosen]
    numbers, rows, counts = _count_shared(tokens, prompts)
    found: dict[int, list[tuple[int, float]]] = {}
    answers = {part: _answer(*tokens.take(part)) for part in chosen}
    for number, part in enumerate(chosen):
        sizes = rows + max(1, len(prompts[number])) - counts[number]
        similarity = counts[number] / numpy.maximum(sizes, 1)
        similarity[numbers == part] = 0
        best = numpy.argsort(-similarity, kind="stable")[: 4 * most]
        others = [(int(numbers[each]), float(similarity[each])) for each in best if similarity[each] >= _ALIKE]
        found[part] = [each for each in others if _answer(*tokens.take(each[0])) != answers[part]][:most]
    return found


def _count_shared(tokens: TokenParts, prompts: list[Any]) -> tuple[Any, Any, Any]:
    """The parts whose prompts share pairs with some of `prompts`, the number of pairs of each, and for each of
    `prompts` how many it shares. Pairs that many parts have are not counted, and are dropped from `prompts`."""
    import numpy

    every = numpy.unique(numpy.concatenate([numpy.zeros(0, dtype=numpy.int64), *prompts]))
    spread = numpy.zeros(len(every), dtype=numpy.int64)
    most = max(10, _SHARED * len(tokens))
    found: list[tuple[int, int, Any]] = []
    part = 0
    for lengths, ids, labels in tokens.batches():
        end = 0
        for length in lengths.tolist():
            begin, end = end, end + length
            own = _pairs(ids[begin:end], labels[begin:end])
            at = numpy.searchsorted(every, own)
            there = at[every[numpy.minimum(at, len(every) - 1)] == own] if len(every) else at[:0]
            spread[there] += 1
            rare = there[spread[there] <= most]  # what is common by now need not be remembered for every part
            if len(rare):
                found.append((part, len(own) - len(there) + len(rare), rare.astype(numpy.int32)))
            part += 1
    common = spread > most
    members = numpy.array([numpy.isin(every, own) & ~common for own in prompts]).reshape(len(prompts), len(every))
    found = [(number, size - int(common[there].sum()), there[~common[there]]) for number, size, there in found]
    found = [each for each in found if len(each[2])]
    counts = numpy.zeros((len(prompts), len(found)), dtype=numpy.int32)
    for column, (_, _, there) in enumerate(found):
        counts[:, column] = members[:, there].sum(axis=1)
    for number, own in enumerate(prompts):
        prompts[number] = own[members[number][numpy.searchsorted(every, own)]] if len(own) else own
    numbers, sizes = (numpy.array([each[at] for each in found], dtype=numpy.int64) for at in (0, 1))
    return numbers, sizes, counts


def _pairs(ids: Any, labels: Any) -> Any:
    """The distinct pairs of neighbouring tokens before the first trained one, each as one number."""
    import numpy

    ids, labels = numpy.asarray(ids, dtype=numpy.int64), numpy.asarray(labels)
    trained = numpy.flatnonzero(labels[1:] != MASKED)
    prompt = ids[: trained[0] + 1] if len(trained) else ids
    return numpy.unique(prompt[:-1] << 32 | prompt[1:])


def _answer(ids: list[int], labels: list[int]) -> list[int]:
    return [token for token, label in zip(ids[1:], labels[1:], strict=True) if label != MASKED]
