"""Canonical rows to token ids and labels.

`tokenize_rows` is the step over files: many processes, resumable, memory-mapped result. `Tokenizing` does one batch, and
`tokenize` a stream of rows in this process. All give the same tokens: those of `apply_chat_template(tokenize=True)`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from engine.prep import detect_format
from engine.prep.chat_labels import Refused, Rendered, Renderer
from engine.prep.chunks import SIZE, Span, cut, lines, work_through
from engine.prep.encoding import WIDTH, Asked, encoder_for, token_at
from engine.prep.files.lines import LONGEST_LINE, too_long
from engine.prep.formats.canonical import Canonical, conversation_of, kind_of
from engine.prep.read_rows import Rejects, Row
from engine.prep.readers import decode
from engine.prep.templates import ChatTokenizer
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from engine.prep.tokenize_prompts import Prompting
    from engine.prep.tokenize_replies import Replying

BATCH = 512
"""Rows encoded together: enough to make calls cheap, few enough to stream."""
MASKED = -100
"""The label that no loss counts."""
WHOLE = 2**31 - 1
"""A `max_length` that cuts nothing."""

PLACED_LINE = 2**31
"""Bytes. Placed lines are our own: as long as their rows, which a reader has already let through."""
_GOLDEN = 3
"""Conversations that a template lock keeps."""


class Tokens(NamedTuple):
    """A row as the model sees it: equally long lists. `labels` are unshifted; the first is always masked (nothing predicts it)."""

    ids: list[int]
    labels: list[int]
    row: Row


@dataclass
class Counts:
    """What became of the rows of one part. Lengths in tokens, after truncation."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    masked: int = 0
    """Rows dropped because truncation left no trained token."""
    ended: int = 0
    """Rows in which an end-of-turn token is trained."""
    unwritten: int = 0
    """Rows with tools or tool calls that the template says nothing of."""
    misfits: Counter[str] = field(default_factory=Counter)
    """Rows of another kind than is wanted, by kind."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by length."""

    def add(self, other: Counts) -> None:
        for name in ("rows", "tokens", "trained_tokens", "truncated", "masked", "ended", "unwritten"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.misfits.update(other.misfits)
        self.lengths.update(other.lengths)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"lengths": sorted(self.lengths.items()), "misfits": dict(self.misfits)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Counts:
        return cls(**{**content, "lengths": Counter(dict(content["lengths"])), "misfits": Counter(content["misfits"])})

    def summary(self) -> dict[str, int]:
        told = {
            name: getattr(self, name) for name in ("rows", "tokens", "trained_tokens", "truncated", "masked", "ended")
        }
        return told | {
            name: percentile(self.lengths, share) for name, share in (("p50", 50), ("p95", 95), ("max", 100))
        }


def percentile(lengths: Counter[int], share: int) -> int:
    """The length at `share` hundredths of the ordered rows; 0 when there are none."""
    rows = sum(lengths.values())
    place, seen = min(rows - 1, rows * share // 100), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen > place:
            return length
    return 0


# ── a batch ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Batch(NamedTuple):
    """Kept rows. `columns`: name -> (values of all rows end to end, number of values in each), as `store` writes them; `rows`: their places in the batch."""

    columns: dict[str, tuple[Any, list[int]]]
    rows: list[int]
    refused: dict[int, str]
    """Place in the batch -> why no template renders it."""


class Tokenizing:
    """Tokenises batches; remembers words and templates from one to the next. Raises ValueError for a tokenizer that is pure Python."""

    def __init__(self, tokenizer: Any, loss_on: str, max_length: int) -> None:
        chat = ChatTokenizer.of(tokenizer)
        self._renderer, self._encoder = Renderer(chat, loss_on), encoder_for(bare(chat))
        self._max_length = max_length
        self.template = chat.chat_template

    def __call__(self, rows: Sequence[Canonical], counts: Counts) -> Batch:
        """Rows that can be trained on, in order; `counts` is told of all but the refused."""
        rendered = self._renderer.render(rows)
        counts.misfits.update(kind for row in rows if (kind := kind_of(row)) != "tokens")
        counts.unwritten += self._renderer.unwritten.total()
        self._renderer.unwritten.clear()
        refused = {at: result.reason for at, result in enumerate(rendered) if isinstance(result, Refused)}
        kept = [(at, result) for at, result in enumerate(rendered) if isinstance(result, Rendered)]
        marks = [_marks(result) for _, result in kept]
        asked = [Asked(result.text, mark, result.special) for (_, result), mark in zip(kept, marks, strict=True)]
        parts, lengths, numbers = [], [], []
        bounds: list[tuple[int, int]] = []
        total = 0
        for (at, result), mark, encoded in zip(kept, marks, self._encoder.encode(asked), strict=True):
            whole = len(encoded.ids) // WIDTH
            length = min(whole, self._max_length)
            counts.truncated += whole > length
            place = dict(zip(mark, encoded.places, strict=True))
            trained = [
                (first, last)
                for start, end in result.spans
                if (first := max(1, place[start])) < (last := min(length, place[end]))
            ]
            if not trained:
                counts.masked += 1
                continue
            bounds += [(total + first, total + last) for first, last in trained]
            parts.append(encoded.ids if length == whole else encoded.ids[: length * WIDTH])
            lengths.append(length)
            numbers.append(at)
            total += length
            counts.trained_tokens += sum(last - first for first, last in trained)
            counts.ended += any(first <= place[end - 1] < last for end in result.ends for first, last in trained)
        counts.rows += len(lengths)
        counts.tokens += total
        counts.lengths.update(lengths)
        ids, labels = _arrays(parts, bounds, total)
        return Batch({"input_ids": (ids, lengths), "labels": (labels, lengths)}, numbers, refused)

    def lengths(self, batch: Batch) -> tuple[Any, Any]:
        """Tokens of each row, an array of [rows, 1], and the place of its first trained token, [rows]."""
        import numpy

        labels, counted = batch.columns["labels"]
        lengths = numpy.array(counted, dtype=numpy.int32)
        starts = numpy.cumsum(lengths) - lengths
        places = numpy.flatnonzero(labels != MASKED)
        first = places[numpy.searchsorted(places, starts)] - starts if len(starts) else starts
        return lengths[:, None], first.astype(numpy.int32)


def _marks(rendered: Rendered) -> list[int]:
    """The characters whose tokens are needed: where spans begin and end, and the last ones of end-of-turn tokens."""
    return sorted({*itertools.chain.from_iterable(rendered.spans), *(end - 1 for end in rendered.ends)})


def _arrays(parts: list[bytes], bounds: list[tuple[int, int]], total: int) -> tuple[Any, Any]:
    """Ids, and labels trained within `bounds`: no two overlap, none is empty."""
    import numpy

    ids = numpy.frombuffer(b"".join(parts), dtype=numpy.int32)
    step = numpy.zeros(total + 1, dtype=numpy.int8)
    if bounds:
        starts, ends = numpy.array(bounds).T
        step[starts] += 1
        step[ends] -= 1
    return ids, numpy.where(numpy.cumsum(step[:-1], dtype=numpy.int8) > 0, ids, numpy.int32(MASKED))


def tokenizing_of(
    kind: str,
    tokenizer: Any,
    loss_on: str,
    max_length: int,
    max_prompt: int | None = None,
    task: str | None = None,
) -> Tokenizing | Replying | Prompting:
    """What makes rows of this kind (a method's `Options.rows`); `task` is whose answers the references of prompts must be. Raises
    ValueError for a tokenizer that is pure Python."""
    from engine.prep.tokenize_prompts import Prompting
    from engine.prep.tokenize_replies import Replying

    if kind == "tokens":
        return Tokenizing(tokenizer, loss_on, max_length)
    if kind == "prompts":
        return Prompting(tokenizer, max_length, max_prompt, task)
    return Replying(tokenizer, kind, max_length, max_prompt)


def bare(tokenizer: Any) -> Any:
    """The Rust tokenizer inside, set neither to cut nor to pad. Raises ValueError for one that is pure Python."""
    encoder = ChatTokenizer.of(tokenizer).backend_tokenizer
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = (
        False  # transformers leaves it as the last call with `split_special_tokens` wanted it
    )
    return encoder


# ── a stream ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tokenize(
    rows: Iterable[Row], tokenizing: Tokenizing | Replying | Prompting, rejects: Rejects, counts: Counts
) -> Iterator[tuple[Row, dict[str, list[Any]]]]:
    """The rows that can be trained on with their columns, in order; the others are counted, those that no template renders also rejected."""
    stream = iter(rows)
    while some := list(itertools.islice(stream, BATCH)):
        batch = tokenizing([row.content for row in some], counts)
        for at, reason in batch.refused.items():
            rejects.add(some[at].file, some[at].line, some[at].offset, reason)
        begins = dict.fromkeys(batch.columns, 0)
        for number, at in enumerate(batch.rows):
            columns = {}
            for name, (values, lengths) in batch.columns.items():
                some_values = values[begins[name] : begins[name] + lengths[number]]
                columns[name] = [value if isinstance(value, str) else int(value) for value in some_values]
                begins[name] += lengths[number]
            yield some[at], columns


def encode(rendered: list[Rendered], encoder: Any) -> Iterator[Any]:
    """`tokenizers.Encoding`s in order, with offsets; neighbours that treat special tokens alike go together."""
    for special, group in itertools.groupby(rendered, key=lambda each: each.special):
        yield from encoder.encode_batch([each.text for each in group], add_special_tokens=special)


def label(rendered: Rendered, encoding: Any) -> list[int]:
    """Labels of all tokens. A token that only ends inside a span is trained too, as in transformers' own assistant masks."""
    ids: list[int] = encoding.ids
    labels = [MASKED] * len(ids)
    for start, end in rendered.spans:
        first, last = (token_at(encoding, place, len(rendered.text)) for place in (start, end))
        labels[first:last] = ids[first:last]
    if labels:
        labels[0] = MASKED
    return labels


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Made(NamedTuple):
    """What `tokenize_rows` has done. `golden` are the messages of the first few conversations kept."""

    counts: Counts
    golden: list[list[dict[str, Any]]]


def tokenize_rows(
    rows: Sequence[Path],
    into: Path,
    tokenizer: Any,
    loss_on: str,
    max_length: int,
    rejects: Rejects,
    work: Path,
    processes: int,
    progress: Callable[[int, int], object],
    files: Sequence[str] = (),
    kinds: Sequence[str | None] = (),
    kept: Path | None = None,
    wanted: str = "tokens",
    max_prompt: int | None = None,
    task: str | None = None,
) -> Made:
    """Tokenise the rows of JSONL files into the Arrow set `into`, as `store` describes it.

    A line is a row; or `[file, line, offset, row]`, as between two stages, where `files` are given: `file` is a place among them. Rows
    are canonical unless `kinds` says which shape they have, for each of `files`, or one for all lines that are rows. Bad ones go to `rejects`.
    `work` keeps what is done of the step across kills: remove it when the result is safe. `kept`, if given, becomes a JSONL file of the
    canonical rows that were kept. `progress` is told (bytes done, bytes in all). `wanted` is the kind of rows that a method takes, and
    `max_prompt` where prompts are cut at their beginning, `task` whose answers the references of prompts to answer must be.

    Raises ProblemError for a conversation when the tokenizer has no template, ValueError for a tokenizer that is pure Python.
    """
    from engine.prep import token_store

    settings = {
        "tokenizer": str(ChatTokenizer.of(tokenizer).save(work)),
        "loss_on": loss_on,
        "max_length": max_length,
        "wanted": wanted,
        "max_prompt": max_prompt,
        "task": task,
        "files": list(files),
        "kinds": list(kinds),
        "kept": kept is not None,
    }
    total = sum(path.stat().st_size for path in rows)
    # By the input alone, so that the number of processes shows nowhere; and no more of them than pay for their start.
    size = min(SIZE, max(SIZE // 8, total // 16))
    spans = [span for path in rows for span in cut(path, size)]
    processes = min(processes, 1 + total // (2 * SIZE))
    made = Made(Counts(), [])
    with token_store.linked(into, token_store.COLUMNS[wanted]) as link, open(kept or os.devnull, "wb") as rows_file:
        for done in work_through(spans, f"{__name__}:work", settings, work / "tokens", processes, progress):
            _check_template(done.counts["untemplated"])
            made.counts.add(Counts.from_json(done.counts["counts"]))
            made.golden.extend(done.counts["golden"][: _GOLDEN - len(made.golden)])
            link(done.folder / "tokens.arrow")
            rejects.read += done.counts["read"]
            for line in (done.folder / "rejects.jsonl").read_bytes().splitlines():
                rejects.add(**json.loads(line))
            if kept:
                rows_file.write((done.folder / "rows.jsonl").read_bytes())
    return made


def _check_template(place: str) -> None:
    if place:
        raise ProblemError(
            Problem(
                code="template.none",
                title="The base has no chat template",
                cause=f"{place} is a conversation, and nothing says how this model writes one",
                hint="name a Jinja file in data.template, or take an instruction-tuned base",
            )
        )


def work(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The work on a span (see `chunks.Work`): leaves `tokens.arrow`, `rejects.jsonl` and, where asked for, `rows.jsonl`."""
    from engine.prep import token_store

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is a process for each core already
    tokenizing = _tokenizing(
        *(settings[name] for name in ("wanted", "tokenizer", "loss_on", "max_length", "max_prompt", "task"))
    )
    counts, told = Counts(), {"read": 0, "untemplated": ""}
    golden: list[list[dict[str, Any]]] = []
    with (
        (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects_file,
        (folder / "rows.jsonl").open("wb") as rows_file,
        token_store.arrow_writer(folder / "tokens.arrow", token_store.COLUMNS[settings["wanted"]]) as write,
    ):
        rejects = Rejects(rejects_file.write)
        rows = read_span(span, settings["files"], settings["kinds"], rejects)
        while some := list(itertools.islice(rows, BATCH)):
            spoken = next((row for row in some if conversation_of(row.content)), None)
            if spoken and not tokenizing.template:
                told["untemplated"] = f"{Path(spoken.file).name}:{spoken.line}"
                break
            batch = tokenizing([row.content for row in some], counts)
            for at, reason in batch.refused.items():
                rejects.add(some[at].file, some[at].line, some[at].offset, reason)
            write(batch.columns)
            for at in batch.rows:
                content = some[at].content
                if len(golden) < _GOLDEN and (talk := conversation_of(content)) and talk not in golden:
                    golden.append(talk)
                if settings["kept"]:
                    rows_file.write(msgspec.json.encode(content) + b"\n")
        told["read"] = rejects.read
    return {"counts": counts.to_json(), "golden": golden, **told}


@functools.lru_cache(maxsize=2)
def _tokenizing(
    wanted: str, tokenizer: str, loss_on: str, max_length: int, max_prompt: int | None, task: str | None
) -> Tokenizing | Replying | Prompting:
    """Kept from one span to the next. The folder's name is a hash of its content."""
    return tokenizing_of(wanted, ChatTokenizer.load(Path(tokenizer)), loss_on, max_length, max_prompt, task)


def read_span(span: Span, files: Sequence[str], kinds: Sequence[str | None], rejects: Rejects) -> Iterator[Row]:
    """The canonical rows of a span, see `tokenize_rows`: of placed lines where there are `files`. Bad ones are rejected."""
    convert = {kind: detect_format.load(kind).convert for kind in kinds if kind}
    for line in lines(span, PLACED_LINE if files else LONGEST_LINE):
        file, number, offset, value, reason = span.path, line.number, line.offset, None, ""
        kind = kinds[0] if kinds else None
        if line.content is None:
            reason = too_long("a line")
        elif files:
            at, number, offset, value = msgspec.json.decode(line.content)
            file, kind = files[at], kinds[at] if kinds else None
        elif not line.content.strip():
            continue
        else:
            value, reason = decode(line.content.removeprefix(b"\xef\xbb\xbf"))
        rejects.read += 1
        if value is not None:
            try:
                for content in detect_format.listed(convert[kind](value)) if kind else [value]:
                    yield Row(file, number, offset, content)
            except ValueError as error:
                reason = str(error)
        if reason:
            rejects.add(file, number, offset, reason)
