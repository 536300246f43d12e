"""The one Rich console of verbs and of the workers that print: its styles reach the terminal, control characters in
what it prints do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from engine.protocol.terminal import GuardedStream, show_controls

if TYPE_CHECKING:
    from rich.progress import TextColumn


class GuardedConsole(Console):
    """Shows the control characters in every segment that is not Rich's own. Nothing that it prints is markup."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    @property
    def file(self) -> IO[str]:
        """The stream itself: `GuardedStream` could not tell Rich's escape sequences from foreign ones."""
        file: Any = super().file
        return file.stream if isinstance(file, GuardedStream) else file

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(show_controls(segment.text), segment.style)


def text(content: str, style: str = "") -> Text:
    """`content` as it is, with its control characters shown: Rich's `Text` drops five of them and keeps the others."""
    return Text(show_controls(content), style=style)


def text_column(template: str) -> TextColumn:
    """A column of a progress bar whose text is no markup."""
    from rich.progress import TextColumn

    return TextColumn(template, markup=False)
