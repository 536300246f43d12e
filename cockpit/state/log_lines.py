"""The lines of a log: their levels and ranks, which of them are shown, and where a word is in them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from engine.protocol.terminal import show_controls

ERROR, WARNING, OTHER = 2, 1, 0
LEVELS = {OTHER: "all", WARNING: "warnings and errors", ERROR: "errors"}
"""The least level of the lines that are shown -> its name."""
MOST = 200_000
"""Lines that are kept; of a longer log the oldest ones are left out again."""
_STYLES = re.compile(r"\x1b\[[0-9;:]*[mK]")
_ERROR = re.compile(
    r"\b(error|critical|fatal|traceback|exception|out of memory|killed)\b|\w(Error|Exception)\b|✗", re.I
)
_WARNING = re.compile(r"\bwarn(ing)?s?\b|\w(Warning)\b|\bdeprecated\b", re.I)
_FRAME = re.compile(r'^\s+(File "|\^|~|[\w.]+.*)')
_RANK = re.compile(r"^\W*(?:rank|default|node|host)\s?(\d+)\b[\]:]", re.I)


@dataclass(frozen=True, slots=True)
class LogLine:
    text: str
    level: int = OTHER
    rank: int | None = None
    """The rank that wrote it, where the line says so."""


@dataclass
class LogText:
    """A log that grows at its end, and at its beginning while older parts are read."""

    lines: list[LogLine] = field(default_factory=list)
    dropped: int = 0
    """Lines that were left out again at the beginning."""
    _rest: str = ""
    """The last line, while its end has not come."""

    def append(self, text: str) -> None:
        *whole, self._rest = (self._rest + text).split("\n")
        self.lines += read_lines(whole, self.lines[-1] if self.lines else None)
        if len(self.lines) > MOST:
            self.dropped += len(self.lines) - MOST
            del self.lines[:-MOST]

    def prepend(self, text: str) -> int:
        """Add an older part, which ends where this text begins. Returns how many lines came before the first."""
        whole = text.split("\n")
        last = whole.pop()
        if last and self.lines:  # the part ends within a line
            self.lines[0] = next(read_lines([last + self.lines[0].text], None))
        elif last:
            self._rest = last + self._rest
        older = list(read_lines(whole, None))
        self.lines[:0] = older
        return len(older)

    def all(self) -> list[LogLine]:
        """Every line, with the one that is being written."""
        return (
            [*self.lines, *read_lines([self._rest], self.lines[-1] if self.lines else None)]
            if self._rest
            else self.lines
        )

    def list_ranks(self) -> list[int]:
        return sorted({line.rank for line in self.lines if line.rank is not None})


def read_lines(texts: Sequence[str], before: LogLine | None) -> Iterator[LogLine]:
    """Lines with their levels. The indented lines of a traceback belong to the error above them."""
    for raw in texts:
        text = clean(raw)
        found = _RANK.match(text)
        rank = int(found[1]) if found else None
        level = ERROR if _ERROR.search(text) else WARNING if _WARNING.search(text) else OTHER
        if level == OTHER and before is not None and before.level == ERROR and _FRAME.match(text):
            level, rank = ERROR, before.rank if rank is None else rank
        before = LogLine(text, level, rank)
        yield before


def clean(line: str) -> str:
    """The line as a terminal would leave it: a carriage return begins it again; styles are dropped, and any other
    escape sequence is shown."""
    text = _STYLES.sub("", line.rstrip("\r")).rsplit("\r", 1)[-1]
    return show_controls(text.expandtabs(4), keep="")


def select(lines: Sequence[LogLine], level: int, rank: int | None) -> list[LogLine]:
    """The lines of this level or above, and of this rank; None for all of them."""
    if level == OTHER and rank is None:
        return list(lines)
    return [line for line in lines if line.level >= level and (rank is None or line.rank == rank)]


def find(lines: Sequence[LogLine], words: str, start: int, direction: int) -> int | None:
    """The next line from `start` on that has the words, going round once; capitals count only where there are some."""
    if not words or not lines:
        return None
    plain = words == words.lower()
    for offset in range(len(lines)):
        at = (start + direction * offset) % len(lines)
        text = lines[at].text.lower() if plain else lines[at].text
        if words in text:
            return at
    return None
