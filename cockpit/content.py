"""Text for widgets: Textual's `Content`, with control characters shown.

Textual drops five of them after it has counted where styles begin and end, which ends the app at the next repaint; the
others it would send to the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual import content

from engine.protocol.terminal import show_controls

if TYPE_CHECKING:
    from textual.content import Content as Content  # what its methods return
else:

    class Content(content.Content):
        """Every text of the app is made by one of these three."""

        def __init__(self, text: str = "", *arguments: Any, **options: Any) -> None:
            super().__init__(show_controls(text), *arguments, **options)

        @classmethod
        def styled(cls, text: str, *arguments: Any, **options: Any) -> content.Content:
            return super().styled(show_controls(text), *arguments, **options)

        @classmethod
        def assemble(cls, *parts: Any, **options: Any) -> content.Content:
            return super().assemble(*map(_show, parts), **options)


def _show(part: Any) -> Any:
    """A part of an assembled text: a text, a text with its style, or what has been made of one."""
    if isinstance(part, str):
        return show_controls(part)
    return (show_controls(part[0]), part[1]) if isinstance(part, tuple) else part
