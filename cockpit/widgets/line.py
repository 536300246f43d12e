"""A line or a block of text that repaints only when it changes, and the figures that are written into one."""

from __future__ import annotations

from collections.abc import Sequence

from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr

MUTED = "$text-muted"


class Line(Static):
    """Text in a place of fixed size: a change repaints it without a new layout."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id, classes=classes)
        self._content = Content("")

    def show(self, content: Content) -> None:
        if not content.is_same(self._content):
            self._content = content
            self.update(content, layout=False)


def labelled(name: str, value: str) -> Content:
    """A name and its value."""
    return Content.assemble((f"{tr(name)} ", MUTED), (value, "$text"))


def join_fitting(parts: Sequence[Content], width: int) -> Content:
    """As many of the parts as fit into `width` cells."""
    line = Content("")
    for part in parts:
        longer = Content.assemble(line, "   " if line else "", part)
        if longer.cell_length > width:
            break
        line = longer
    return line
