"""Searching rows: a query line of words and conditions, and the rows that match all of them.

marie curie            rows that contain both words, in any case
"marie curie"          rows that contain the phrase
source:wiki            rows of a source or file with this in its name
category=news          rows whose column has this value
chars>2000 tokens<20   rows longer or shorter than that; tokens as the base's template and tokenizer make them
is:undecided           expanded rows that are undecided, accepted or dropped
"""

from __future__ import annotations

import operator
import re
import shlex
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from engine.prep.expand.decisions import WORDS
from engine.prep.formats.canonical import Canonical, all_text
from engine.protocol.text import did_you_mean

_MEASURE = re.compile(r"(chars|tokens)([<>])(\d+)")
_COMPARISON = re.compile(r"([^\W\d]\w*)(<=|>=|[<>])\S*")
_NAMED = re.compile(r"([^\W\d]\w*):(?!//)\S*")
_COMPARE: dict[str, Callable[[int, int], bool]] = {"<": operator.lt, ">": operator.gt}

EXPANDED = "expanded"
"""The part that holds every row that an expansion has made, dropped ones too."""

Progress = Callable[[int, int], object]
"""Called with (rows done, rows in all)."""


class Searchable(Protocol):
    """What a search needs of a browser."""

    columns: list[str]

    def total(self, part: str) -> int: ...
    def scan(self, part: str) -> Iterator[tuple[str, bytes, Callable[[], Canonical]]]: ...
    def decision(self, at: int) -> str: ...
    def length(self, content: Canonical) -> int: ...


class Measure(NamedTuple):
    """A condition on length: `of` is `chars` or `tokens`, `sign` is < or >."""

    of: str
    sign: str
    limit: int

    def matches(self, size: int) -> bool:
        return _COMPARE[self.sign](size, self.limit)


@dataclass(frozen=True)
class Query:
    """A row matches if it meets all of these conditions."""

    words: tuple[str, ...] = ()
    """In lower case."""
    sources: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    measures: tuple[Measure, ...] = ()
    doubtful: tuple[str, ...] = ()
    """The words that may be meant as conditions: `category:news`."""
    decisions: tuple[str, ...] = ()
    """The row's decision must be one of these."""

    @property
    def empty(self) -> bool:
        return self == Query()


def parse(line: str) -> Query:
    """The query that a line means. Raises ValueError for a quote that is not closed, an unknown decision, and what only
    looks like a condition."""
    try:
        parts = shlex.split(line)
    except ValueError:
        raise ValueError(f'a quote is not closed in: {line} (write " as \\")')
    words, sources, columns, measures, doubtful, decisions = [], [], [], [], [], []
    for part in parts:
        name, equals, value = part.partition("=")
        named = _NAMED.fullmatch(part)
        quoted = any(f"{quote}{part}{quote}" in line for quote in "\"'")
        if quoted:
            words.append(part.lower())
        elif found := _MEASURE.fullmatch(part):
            measures.append(Measure(found[1], found[2], int(found[3])))
        elif part.startswith("source:"):
            sources.append(part.removeprefix("source:").lower())
        elif part.startswith("is:"):
            decisions.append(_check_decision(part.removeprefix("is:")))
        elif _COMPARISON.fullmatch(part):
            raise ValueError(
                f"{part} is not understood: lengths are compared with a whole number, as in chars>2000 or tokens<20, "
                f'and columns with =, as in column=value; "{part}" in quotes finds that text'
            )
        elif equals and name.isidentifier():
            columns.append((name, value))
        elif named and (hint := did_you_mean(named[1].lower(), ("source", "is"))):
            raise ValueError(f'{part} is not understood{hint} "{part}" in quotes finds that text')
        else:
            words.append(part.lower())
            doubtful += [part] if named else []
    return Query(tuple(words), tuple(sources), tuple(columns), tuple(measures), tuple(doubtful), tuple(decisions))


def _check_decision(word: str) -> str:
    if word not in WORDS:
        raise ValueError(f"is:{word} finds nothing; write is:{', is:'.join(WORDS)}")
    return word


def select(browser: Searchable, part: str, query: Query, progress: Progress) -> array[int]:
    """Indices of the part's rows that match, ascending, 8 bytes each.

    Raises ValueError for a column that no row has, and for a condition on decisions in a part that has none.
    """
    if query.decisions and part != EXPANDED:
        raise ValueError(f"only expanded rows are accepted and dropped: is:{query.decisions[0]} finds none in {part}")
    missing = [name for name, _ in query.columns if name not in browser.columns]
    if missing and browser.columns:
        raise ValueError(f"no row has the column {missing[0]}; there are {', '.join(browser.columns) or 'none'}")
    for word in query.doubtful:
        if word.partition(":")[0] in browser.columns:
            raise ValueError(f"{word} is not understood: rows by a column are found with {word.replace(':', '=', 1)}")
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
        if needs_content and not _matches(browser, content(), raw, query):
            continue
        found.append(index)
    return found


def _has_words(raw: bytes, words: tuple[str, ...]) -> bool:
    text = raw.decode("utf-8", "replace").lower()
    if "\\u" in text:  # written as ASCII: 上 is \\u4e0a
        text = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text).lower()
    return all(word in text for word in words)


def _matches(browser: Searchable, content: Canonical, raw: bytes, query: Query) -> bool:
    kept: dict[str, Any] = content.get("columns") or {}
    if any(str(kept.get(name, _read_column(raw, name))) != value for name, value in query.columns):
        return False
    sizes = {"chars": lambda: len(all_text(content)), "tokens": lambda: browser.length(content)}
    return all(measure.matches(sizes[measure.of]()) for measure in query.measures)


def _read_column(raw: bytes, name: str) -> Any:
    """A column of the source row, for columns that the format itself uses."""
    import msgspec

    return msgspec.json.decode(raw).get(name)
