"""The newest lines of a run's log."""

from __future__ import annotations

import re

from cockpit.content import Content
from cockpit.widgets.line import Line
from engine.protocol.terminal import show_controls

_STYLES = re.compile(r"\x1b\[[0-9;:]*m")
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
        return "\n".join(map(_clean_line, self._lines))

    def clear(self) -> None:
        self._lines = [""]
        self._draw()

    def append(self, text: str) -> None:
        """Append a piece of the log. A carriage return starts the line again, as progress bars use it; styles are
        dropped, and any other escape sequence is shown."""
        first, *rest = text.split("\n")
        self._lines[-1] += first
        self._lines = [_last_part(line) for line in [*self._lines, *rest][-MAX_LINES:]]
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        lines = self._lines if self._lines[-1] else self._lines[:-1]
        self.show(Content("\n".join(map(_clean_line, lines[-max(1, self.content_size.height) :]))))


def _last_part(line: str) -> str:
    """What a carriage return has left of the line; one at its end is kept, for what follows."""
    end = "\r" if line.endswith("\r") else ""
    return line.rstrip("\r").rsplit("\r", 1)[-1] + end


def _clean_line(line: str) -> str:
    text = _STYLES.sub("", line.rstrip("\r"))
    return show_controls(text.replace("\t", "    "), keep="")
