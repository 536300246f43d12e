"""A line or a block of text that repaints only when it changes, and the figures that are written into one."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

MUTED = "$text-muted"


class Line(Static):
    """Text of a fixed size: a change repaints it and lays out nothing."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id, classes=classes)
        self._shown = Content("")

    def show(self, content: Content) -> None:
        if not content.is_same(self._shown):
            self._shown = content
            self.update(content, layout=False)


def figure(name: str, value: str) -> Content:
    """A figure after its name."""
    return Content.assemble((f"{name} ", MUTED), (value, "$text"))


def joined(parts: Sequence[Content], width: int) -> Content:
    """As many of the parts as fit in a line."""
    line = Content("")
    for part in parts:
        longer = Content.assemble(line, "   " if line else "", part)
        if longer.cell_length > width:
            break
        line = longer
    return line
