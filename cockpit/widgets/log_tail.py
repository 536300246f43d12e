"""The newest lines of a run's log."""

from __future__ import annotations

import re

from textual.content import Content

from cockpit.widgets.line import Line

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|[\x00-\x08\x0b\x0c\x0e-\x1f]")
MAX_LINES = 400
"""Lines kept in memory."""


class LogTail(Line):
    """Shows as many of the newest lines as there is room for."""

    DEFAULT_CSS = "LogTail { text-wrap: nowrap; text-overflow: ellipsis; color: $text-muted; }"

    def __init__(self) -> None:
        super().__init__(id="log")
        self._lines: list[str] = [""]

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def clear(self) -> None:
        self._lines = [""]
        self._draw()

    def append(self, text: str) -> None:
        """Append a piece of the log. A carriage return starts the line again, as progress bars use it; escape sequences
        are dropped."""
        first, *rest = text.split("\n")
        self._lines[-1] += first
        self._lines = [_clean_line(line) for line in [*self._lines, *rest][-MAX_LINES:]]
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        lines = self._lines if self._lines[-1] else self._lines[:-1]
        self.show(Content("\n".join(lines[-max(1, self.content_size.height) :])))


def _clean_line(line: str) -> str:
    return _ESCAPES.sub("", line.rstrip("\r").rsplit("\r", 1)[-1]).replace("\t", "    ")
