"""What rendering makes of a canonical row: sequences with the characters that are trained, or a refusal."""

from __future__ import annotations

from typing import Literal, NamedTuple

from engine.prep.formats.canonical import Canonical, describe_kind, kind_of


class RenderedRow(NamedTuple):
    """The text of one sequence. In characters, ascending: `spans` are the trained [start, end), which do not overlap,
    `ends` the positions behind end-of-turn tokens."""

    text: str
    spans: list[tuple[int, int]]
    ends: list[int]
    special: bool
    """Whether the tokenizer must still add its special tokens: yes for plain text, no for a rendered template."""


Means = Literal["marked", "together", "unrolled", "text"]
"""How a row's trained characters were found: by the template's own `{% generation %}` marks, by differences of the
whole conversation, in several sequences of which each ends with a reply, or trivially in plain text."""


class Rendering(NamedTuple):
    """A row's sequences."""

    sequences: list[RenderedRow]
    means: Means
    thoughts_left_out: bool = False
    """Whether the template does not write a thought of a reply that is trained."""


class Refusal(NamedTuple):
    """Why a row is left out: the template refuses it, or another method trains on it."""

    reason: str


METHODS = {"pairs": "dpo, orpo or reward", "judged": "kto", "tokens": "sft"}
"""Kind of rows -> the methods that train on them, in words."""


def refuse_misfit(row: Canonical) -> Refusal:
    """The refusal of a row by a method that trains on another kind of rows."""
    return Refusal(f"these are {describe_kind(row)}: they train with method.kind {METHODS[kind_of(row)]}")


def check_spans(rendered: RenderedRow) -> RenderedRow:
    """Returns `rendered`. Raises AssertionError if its spans overlap, are empty or reach beyond the text: then labels
    would be wrong."""
    last = 0
    for start, end in rendered.spans:
        assert last <= start < end <= len(rendered.text), f"trained spans {rendered.spans} of {rendered.text!r}"
        last = end
    return rendered
