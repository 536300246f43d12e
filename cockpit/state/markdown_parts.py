"""Divides Markdown that is being written into parts. Adding to a part costs as much as the part is long, so a long
reply stays as fluid as a short one when its parts are short. Pure."""

from __future__ import annotations

import re

PART = 2000
"""Characters from which a part ends at the next blank line outside code."""
LONGEST = 4000
"""Characters from which it ends at the next line: in code, a list or a table too."""
_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)", re.DOTALL)
_GOES_ON = re.compile(r"[ \t]|[-*+>|] ?|\d+[.)]")
"""The beginning of a line that may belong to a list, a quotation or a table before it."""
_LINK = re.compile(r" {0,3}\[[^\]]+\]:")
"""The beginning of a line that says where links of the whole text lead."""


class MarkdownParts:
    """`feed` takes what arrives and gives it with the places at which a new part begins."""

    def __init__(self) -> None:
        self._exact = True
        self._first, self._links = False, False
        """Whether the current line is the first one of a further part, and whether a line says where links lead."""
        self._divided = False
        self._begins = False
        """Whether what comes next begins a part."""
        self._length = 0
        self._line = ""
        """What the current line has so far."""
        self._opening = self._fence = ""
        """The line that has opened the code that goes on, and the marks in it."""

    @property
    def exact(self) -> bool:
        """Whether the parts together look as the whole would: none begins within code, a list, a quotation or a table,
        or needs what another says of its links."""
        links = self._links or _LINK.match(self._line) is not None
        return self._exact and not (self._divided and links) and not (self._first and _GOES_ON.match(self._line))

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Pieces of text, each with whether it begins a new part. Code that is divided is closed and opened again."""
        pieces: list[tuple[str, bool]] = []
        held, begins = "", self._begins
        for line in text.splitlines(keepends=True):
            held += line
            self._length += len(line)
            self._line += line
            if not line.endswith("\n"):
                continue
            whole, self._line = self._line, ""
            self._links = self._links or _LINK.match(whole) is not None
            if self._first and whole.strip():
                self._first, self._exact = False, self._exact and not _GOES_ON.match(whole)
            self._follow_code(whole)
            blank = not whole.strip() and not self._opening
            if (blank and self._length > PART) or self._length > LONGEST:
                self._exact = self._exact and blank
                pieces.append((f"{held}{self._fence}\n" if self._opening else held, begins))
                held, begins, self._length = self._opening, True, 0
                self._divided = self._first = True
        if held:
            pieces.append((held, begins))
            begins = False
        self._begins = begins
        return pieces

    def _follow_code(self, line: str) -> None:
        if (found := _FENCE.match(line)) is None:
            return
        mark, rest = found[1], found[2].strip()
        if self._opening:
            if mark[0] == self._fence[0] and len(mark) >= len(self._fence) and not rest:
                self._opening = ""
        elif mark[0] != "`" or "`" not in rest:  # else code within a line
            self._opening, self._fence = line, mark
