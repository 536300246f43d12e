"""Prompts and their replies as token ids: preference pairs (`chosen`, `rejected`) and single judgements (`completion`).

A prompt with one of its replies is rendered as one conversation, so together they are what `apply_chat_template`
renders. The reply begins behind the generation prompt and ends with everything that the template writes behind its last
turn. If a token crosses the border between prompt and reply, or the prompt's last tokens depend on the reply, the
prompt ends before them (as in trl).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.prep.chat_labels import Renderer
from engine.prep.encoding import WIDTH, EncodedText, EncodeRequest, choose_encoder
from engine.prep.formats.canonical import Canonical, kind_of
from engine.prep.rendered import Refusal, RenderedRow, refuse_misfit
from engine.prep.templates import ChatTokenizer, unwrap_tokenizer
from engine.prep.token_rows import Batch, Counts, id_column

REPLIES = {"pairs": ("chosen", "rejected"), "judged": ("completion",)}
"""Kind of rows -> the names of their replies; the first is the one that the model should give."""


class TruncatedRow(NamedTuple):
    """A row after truncation; ids are bytes (see `encoding`)."""

    prompt: bytes
    replies: list[bytes]
    truncated: bool
    ended: bool
    """Whether the first reply still has an end-of-turn token."""


class ReplyTokenizer:
    """Tokenises pairs or judgements (see `BatchTokenizer`). A prompt longer than `max_prompt` tokens loses its
    beginning; a sequence longer than `max_length` loses the end of its reply. Raises ValueError for a tokenizer that is
    pure Python."""

    def __init__(
        self, tokenizer: Any, kind: str, max_length: int, max_prompt: int | None, thinking: str = "keep"
    ) -> None:
        chat = ChatTokenizer.of(tokenizer)
        self._renderer = Renderer(chat, "assistant", thinking=thinking)
        self._encoder = choose_encoder(unwrap_tokenizer(chat))
        self._kind, self._names = kind, REPLIES[kind]
        self._max_length, self._max_prompt = max_length, max_prompt
        self.template = chat.chat_template

    def __call__(self, rows: Sequence[Canonical], counts: Counts) -> Batch:
        """The rows that can be trained on, in order. Adds every row but the refused ones to `counts`. A row that
        truncation leaves without a token of one of its replies is masked."""
        refused: dict[int, str] = {}
        fitting = [at for at, row in enumerate(rows) if kind_of(row) == self._kind]
        for at, row in enumerate(rows):
            if (kind := kind_of(row)) != self._kind:
                counts.misfits[kind] += 1
                refused[at] = refuse_misfit(row).reason
        kept: list[tuple[int, TruncatedRow]] = []
        for at, sequences in zip(fitting, self._encode_rows([rows[at] for at in fitting], counts), strict=True):
            if isinstance(sequences, Refusal):
                refused[at] = sequences.reason
            elif cut := self._truncate(sequences, counts):
                kept.append((at, cut))
        counts.rows += len(kept)
        columns = {
            "prompt_ids": id_column([cut.prompt for _, cut in kept]),
            **{
                f"{name}_ids": id_column([cut.replies[place] for _, cut in kept])
                for place, name in enumerate(self._names)
            },
        }
        if self._kind == "judged":
            columns["label"] = [int(rows[at]["label"]) for at, _ in kept], [1] * len(kept)
        return Batch(columns, [at for at, _ in kept], refused)

    def lengths(self, batch: Batch) -> tuple[Any, Any]:
        """Tokens of each row's sequences, int32 [rows, sequences], and the index of the first trained token in all of
        them, [rows]."""
        import numpy

        prompts, *replies = (
            numpy.array(batch.columns[f"{name}_ids"][1], dtype=numpy.int32) for name in ("prompt", *self._names)
        )
        return numpy.stack([prompts + reply for reply in replies], axis=1), prompts

    def _encode_rows(self, rows: list[Canonical], counts: Counts) -> list[list[_Sequence] | Refusal]:
        """For each row its prompt encoded with each of its replies, or why the template cannot render one of them."""
        requests: list[tuple[EncodeRequest, int, list[int]]] = []
        reasons: dict[int, str] = {}
        for number, row in enumerate(rows):
            prompt = {"messages": row["prompt"], **({"tools": row["tools"]} if "tools" in row else {})}
            unwritten: Counter[str] = Counter()
            for name in self._names:
                result = self._renderer.render_reply(prompt, row[name])
                unwritten |= self._renderer.unwritten
                self._renderer.unwritten.clear()
                if all(turn.get("weight") == 0 for turn in row[name] if turn["role"] == "assistant"):
                    reasons.setdefault(number, f"{name} has the weight 0: nothing of it would be trained")
                    result = Refusal("")
                if isinstance(result, Refusal):
                    reasons.setdefault(number, f"{name}: {result.reason}")
                    requests.append((EncodeRequest("", (), False), 0, []))
                else:
                    requests.append(_request(*result))
            counts.take_unwritten(unwritten)
        encoded = self._encoder.encode([each for each, _, _ in requests])
        sequences = [_make_sequence(*each[1:], found, each[0]) for each, found in zip(requests, encoded, strict=True)]
        step = len(self._names)
        return [
            Refusal(reasons[row]) if row in reasons else sequences[row * step : (row + 1) * step]
            for row in range(len(rows))
        ]

    def _truncate(self, sequences: list[_Sequence], counts: Counts) -> TruncatedRow | None:
        begin = _shared_prefix(sequences) * WIDTH
        prompt, replies = sequences[0].ids[:begin], [each.ids[begin:] for each in sequences]
        kept = prompt
        if self._max_prompt is not None:
            kept = prompt[max(0, len(prompt) - self._max_prompt * WIDTH) :]
        room = max(0, self._max_length * WIDTH - len(kept))
        cut = [reply[:room] for reply in replies]
        truncated = len(kept) < len(prompt) or cut != replies
        counts.truncated += truncated
        if not all(cut):
            counts.masked += 1
            return None
        first, last = begin, begin + len(cut[0])
        ended = any(first <= end * WIDTH < last for end in sequences[0].ends)
        lengths = [(len(kept) + len(reply)) // WIDTH for reply in cut]
        counts.ended += ended
        counts.tokens += sum(lengths)
        counts.trained_tokens += sum(map(len, cut)) // WIDTH
        counts.lengths[max(lengths)] += 1
        return TruncatedRow(kept, cut, truncated, ended)


class _Sequence(NamedTuple):
    """A prompt with one reply: `begin` is the index of the reply's first token, `ends` are those of the end-of-turn
    tokens behind it."""

    ids: bytes
    begin: int
    ends: list[int]


def _request(rendered: RenderedRow, start: int) -> tuple[EncodeRequest, int, list[int]]:
    ends = [end - 1 for end in rendered.ends if end > start]
    return EncodeRequest(rendered.text, sorted({start, *ends}), rendered.special), start, ends


def _make_sequence(start: int, ends: list[int], encoded: EncodedText, request: EncodeRequest) -> _Sequence:
    place = dict(zip(request.marks, encoded.places, strict=True))
    return _Sequence(encoded.ids, place.get(start, 0), [place[end] for end in ends])


def _shared_prefix(sequences: list[_Sequence]) -> int:
    """The number of the prompt's first tokens that are the same with every reply."""
    begin = min(each.begin for each in sequences)
    heads = [each.ids[: begin * WIDTH] for each in sequences]
    if all(head == heads[0] for head in heads):
        return begin
    return next(at for at in itertools.count() if len({head[at * WIDTH : (at + 1) * WIDTH] for head in heads}) > 1)


def count_labels(rows: Sequence[Canonical]) -> Counter[str]:
    """The number of good and of bad judgements."""
    return Counter("good" if row["label"] else "bad" for row in rows if "label" in row)
