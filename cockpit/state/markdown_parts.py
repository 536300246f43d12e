"""Divides Markdown that is being written into parts. Adding to a part costs as much as the part is long, so a long
reply stays as fluid as a short one when its parts are short. Pure."""

from __future__ import annotations

PART = 2000
"""Characters from which a part ends at the next blank line outside code."""
LONGEST = 4000
"""Characters from which it ends at the next line: in code, a list or a table too."""
FENCES = ("```", "~~~")


class MarkdownParts:
    """`feed` takes what arrives and gives it with the places at which a new part begins."""

    def __init__(self) -> None:
        self.exact = True
        """Whether the parts together look as the whole would: none begins within code, a list or a table."""
        self._length = 0
        self._line = ""
        """What the current line has so far."""
        self._opening = ""
        """The line that has opened the code that goes on."""

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Pieces of text, each with whether it begins a new part. Code that is divided is closed and opened again."""
        pieces: list[tuple[str, bool]] = []
        held, begins = "", False
        for line in text.splitlines(keepends=True):
            held += line
            self._length += len(line)
            self._line += line
            if not line.endswith("\n"):
                continue
            whole, self._line = self._line, ""
            self._follow_code(whole)
            blank = not whole.strip() and not self._opening
            if (blank and self._length > PART) or self._length > LONGEST:
                self.exact = self.exact and blank
                pieces.append((f"{held}{self._opening[:3]}\n" if self._opening else held, begins))
                held, begins, self._length = self._opening, True, 0
        if held:
            pieces.append((held, begins))
        return pieces

    def _follow_code(self, line: str) -> None:
        mark = line.lstrip()[:3]
        if mark not in FENCES:
            return
        if not self._opening:
            self._opening = line
        elif self._opening.lstrip().startswith(mark) and not line.strip().strip(mark[0]):
            self._opening = ""
