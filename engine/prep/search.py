"""Finding rows: a line of words and conditions, and the rows that fit all of them.

marie curie            rows that hold both words, in any case
"marie curie"          rows that hold the phrase
source:wiki            of a source or file with this in its name
category=news          whose column has this value
chars>2000 tokens<20   longer or shorter than that; tokens as the base's template and tokenizer make them
is:undecided           expanded rows that are undecided, accepted or dropped
"""

from __future__ import annotations

import operator
import re
import shlex
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.prep.expand.decisions import WORDS
from engine.prep.formats.canonical import Canonical

if TYPE_CHECKING:
    from engine.prep.browse import Browser

_MEASURED = re.compile(r"(chars|tokens)([<>])(\d+)")
_COMPARE: dict[str, Callable[[int, int], bool]] = {"<": operator.lt, ">": operator.gt}

EXPANDED = "expanded"
"""The part that holds all rows which an expansion has made, dropped ones too."""

Progress = Callable[[int, int], object]
"""Told (rows done, rows in all)."""


class Measure(NamedTuple):
    """`of` is `chars` or `tokens`, `sign` is < or >."""

    of: str
    sign: str
    limit: int

    def fits(self, size: int) -> bool:
        return _COMPARE[self.sign](size, self.limit)


@dataclass(frozen=True)
class Query:
    """All of these must hold."""

    words: tuple[str, ...] = ()
    """In lower case."""
    sources: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    measures: tuple[Measure, ...] = ()
    decisions: tuple[str, ...] = ()
    """Of which a row has one."""

    @property
    def empty(self) -> bool:
        return self == Query()


def parse(line: str) -> Query:
    """Raises ValueError for a quote that is not closed, and for a decision that there is not."""
    try:
        parts = shlex.split(line)
    except ValueError:
        raise ValueError(f'a quote is not closed in: {line} (write " as \\")')
    words, sources, columns, measures, decided = [], [], [], [], []
    for part in parts:
        name, equals, value = part.partition("=")
        if found := _MEASURED.fullmatch(part):
            measures.append(Measure(found[1], found[2], int(found[3])))
        elif part.startswith("source:"):
            sources.append(part.removeprefix("source:").lower())
        elif part.startswith("is:"):
            decided.append(_decision(part.removeprefix("is:")))
        elif equals and name.isidentifier():
            columns.append((name, value))
        else:
            words.append(part.lower())
    return Query(tuple(words), tuple(sources), tuple(columns), tuple(measures), tuple(decided))


def _decision(word: str) -> str:
    if word not in WORDS:
        raise ValueError(f"is:{word} finds nothing; write is:{', is:'.join(WORDS)}")
    return word


def select(browser: Browser, part: str, query: Query, progress: Progress) -> array[int]:
    """Indices of the part's rows that fit, ascending: 8 bytes each. Raises ValueError for a column that no row has, and for decisions
    where none are taken."""
    if query.decisions and part != EXPANDED:
        raise ValueError(f"only expanded rows are accepted and dropped: is:{query.decisions[0]} finds none in {part}")
    missing = [name for name, _ in query.columns if name not in browser.columns]
    if missing and browser.columns:
        raise ValueError(f"no row has the column {missing[0]}; there are {', '.join(browser.columns) or 'none'}")
    found, total = array("Q"), browser.total(part)
    needs_content = bool(query.columns or query.measures)
    for index, (place, raw, content) in enumerate(browser.scan(part)):
        if index % 256 == 0:
            progress(index, total)
        if query.decisions and browser.decision(index) not in query.decisions:
            continue
        if query.sources and not all(source in place for source in query.sources):
            continue
        if query.words and not _has_words(raw, query.words):
            continue
        if needs_content and not _fits(browser, content(), raw, query):
            continue
        found.append(index)
    return found


def _has_words(raw: bytes, words: tuple[str, ...]) -> bool:
    text = raw.decode("utf-8", "replace").lower()
    if "\\u" in text:  # a writer that kept to ASCII: 上 stands there as \\u4e0a
        text = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text).lower()
    return all(word in text for word in words)


def _fits(browser: Browser, content: Canonical, raw: bytes, query: Query) -> bool:
    kept: dict[str, Any] = content.get("columns") or {}
    if any(str(kept.get(name, _read_column(raw, name))) != value for name, value in query.columns):
        return False
    sizes = {"chars": lambda: len(text_of(content)), "tokens": lambda: browser.length(content)}
    return all(measure.fits(sizes[measure.of]()) for measure in query.measures)


def _read_column(raw: bytes, name: str) -> Any:
    """A column of the row as it stands, for those that the format itself takes up."""
    import msgspec

    return msgspec.json.decode(raw).get(name)


def text_of(content: Canonical) -> str:
    """What was said in a row, whatever its format."""
    if "text" in content:
        return str(content["text"])
    turns = [
        turn for key in ("messages", "prompt", "chosen", "rejected", "completion") for turn in content.get(key, ())
    ]
    return "\n".join(str(turn.get("content") or "") for turn in turns)
