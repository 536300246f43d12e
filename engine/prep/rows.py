"""Rows as they come out of a source: the good ones with their place, the bad ones counted and written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from engine.prep.formats.canonical import Canonical


def too_many(bad: int, read: int, limit: float) -> bool:
    """Whether more than this share of the rows is bad. The quotient is compared, as `0.29 * 100` is less than 29."""
    return bad > 0 and bad / max(read, 1) > limit


class Row(NamedTuple):
    """A good row and its place. All canonical rows made from one source row share its place."""

    file: str
    line: int
    offset: int
    content: Canonical


@dataclass
class Rejects:
    """Counts bad rows, and writes each row that is left out as a JSON line: file, line, offset and reason."""

    write: Callable[[str], object]
    read: int = 0
    """Records seen, good and bad."""
    count: int = 0
    first: list[str] = field(default_factory=list)
    """The first three, for a message: `file:line: reason`."""

    def add(self, file: str, line: int, offset: int, reason: str, *, bad: bool = True) -> None:
        """Write down a row that is left out, and count it if it is bad."""
        if bad:
            self.count += 1
            if len(self.first) < 3:
                self.first.append(f"{Path(file).name}:{line}: {reason}")
        self.write(
            json.dumps({"file": file, "line": line, "offset": offset, "reason": reason}, ensure_ascii=False) + "\n"
        )
