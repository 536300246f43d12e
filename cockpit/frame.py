"""Writes only the cells that differ from what the terminal shows.

Textual repaints whole widgets, and the whole screen when a dialog opens or closes or another screen is shown. Over SSH
that takes as long as hundreds of keys. The frame remembers what was written and sends the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from rich.cells import cell_len, split_graphemes
from rich.color import ColorSystem
from rich.console import Console
from rich.control import Control
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.strip import Strip

from cockpit.pen import PLAIN, Cell, Pen, find_looks

UNKNOWN: Cell = ("\0", PLAIN)
"""What a cell holds of which it is not known what the terminal shows."""
JOIN = 6
"""Unchanged cells between two changed ones that are cheaper to write than to skip."""
LONG = 48
"""Characters of a segment whose cells are not kept: lines of a log, which come once."""


class Frame:
    """The cells that the terminal shows, as far as they are known."""

    def __init__(self) -> None:
        self._rows: list[list[Cell]] = []
        self._width = 0

    def forget(self) -> None:
        """Somebody else has written to the terminal, or its size has changed: the next update writes all cells."""
        self._rows, self._width = [], 0

    def resize(self, width: int, height: int) -> None:
        if width != self._width or height != len(self._rows):
            self._width, self._rows = width, [[UNKNOWN] * width for _ in range(height)]

    def write(self, x: int, y: int, strip: Strip, pen: Pen, span: tuple[int, int]) -> Iterator[str]:
        """The sequences that bring the columns `span` of `strip`, which begins at (x, y), onto the terminal, with both
        halves of the wide characters at its ends."""
        if not 0 <= y < len(self._rows) or x < 0:
            return
        row = self._rows[y]
        cells = _cells(strip)[: self._width - x]
        left, right = max(0, span[0] - x), min(len(cells), span[1] - x)
        while 0 < left < right and not cells[left][0]:
            left -= 1
        while left < right < len(cells) and not cells[right][0]:
            right += 1
        cells = cells[left:right]
        x += left
        before = row[x : x + len(cells)]
        if cells == before:
            return
        for start, stop in _changed(before, cells):
            yield Control.move_to(x + start, y).segment.text
            yield from pen.write(cells[start:stop])
        if x and not before[0][0] and cells[0][0]:
            row[x - 1] = UNKNOWN  # the terminal clears the other half of what was there
        row[x : x + len(cells)] = cells
        end = x + len(cells)
        if end < len(row) and not row[end][0] and before[-1] != cells[-1]:
            row[end] = UNKNOWN


class FrameUpdate(CompositorUpdate):
    """An update of Textual's that writes only what differs from the frame. Nothing is compared before it is written:
    an update that Textual drops leaves the frame as it is, and one that fails makes it unknown."""

    def __init__(self, update: LayoutUpdate | ChopsUpdate, frame: Frame) -> None:
        self.update, self.frame = update, frame

    def render_segments(self, console: Console) -> str:
        pen = Pen(console._color_system or ColorSystem.TRUECOLOR)
        try:
            return "".join(self._write(pen)) + pen.lift()
        except Exception:
            self.frame.forget()
            raise

    def _write(self, pen: Pen) -> Iterator[str]:
        if isinstance(self.update, LayoutUpdate):
            region = self.update.region
            self.frame.resize(region.right, region.bottom)
            for y, strips in enumerate(self.update.strips, region.y):
                yield from self.frame.write(region.x, y, Strip.join(list(strips)), pen, region.column_span)
            return
        self.frame.resize(*_size(self.update))
        for y, left, right in self.update.spans:
            ends = self.update.chop_ends[y]
            for end, (x, strip) in zip(ends, self.update.chops[y].items(), strict=False):
                span = max(x, left), min(end, right)
                if strip is not None and span[0] < span[1]:
                    yield from self.frame.write(x, y, strip, pen, span)


def _size(update: ChopsUpdate) -> tuple[int, int]:
    return max((ends[-1] for ends in update.chop_ends if ends), default=0), len(update.chops)


def _cells(strip: Iterable[Segment]) -> list[Cell]:
    """The cells of a strip. What takes no cell of its own is part of the cell before it."""
    cells: list[Cell] = []
    for text, style, control in strip:
        if control:
            continue
        known = len(text) <= LONG or text.isspace()
        marks, own = (_cells_of if known else _cells_of.__wrapped__)(text, style)
        if marks and cells:
            at = -1 if cells[-1][0] or len(cells) == 1 else -2
            cells[at] = (cells[at][0] + marks, cells[at][1])
        cells += own
    return cells


@lru_cache(4096)
def _cells_of(text: str, style: Style | None) -> tuple[str, list[Cell]]:
    """The cells of one segment, and before them what takes none."""
    look, bare = find_looks(style)
    if text.isascii():
        return "", [(character, bare if character == " " else look) for character in text]
    marks = ""
    cells: list[Cell] = []
    for character, width in _clusters(text):
        if width:
            cells.append((character, bare if character == " " else look))
            cells += [("", look)] * (width - 1)
        elif cells:
            at = -1 if cells[-1][0] else -2
            cells[at] = (cells[at][0] + character, look)
        else:
            marks += character
    return marks, cells


def _clusters(text: str) -> Iterator[tuple[str, int]]:
    """The characters of a text and how many cells each takes, measured as Textual does."""
    if "\u200d" in text or "\ufe0f" in text:  # emoji of several characters
        yield from ((text[start:stop], width) for start, stop, width in split_graphemes(text)[0])
    else:
        yield from ((character, cell_len(character)) for character in text)


def _changed(before: list[Cell], now: list[Cell]) -> Iterator[tuple[int, int]]:
    """Start and stop of each part that differs; parts close to each other are joined, and no wide character is cut."""
    size = len(now)
    start = stop = -1
    for at in range(size):
        if at < len(before) and before[at] == now[at]:
            continue
        if start >= 0 and at - stop > JOIN:
            yield _whole(start, stop, before, now)
            start = at
        elif start < 0:
            start = at
        stop = at + 1
    if start >= 0:
        yield _whole(start, stop, before, now)


def _whole(start: int, stop: int, before: list[Cell], now: list[Cell]) -> tuple[int, int]:
    """The part, with both halves of the wide characters at its ends."""
    while start > 0 and (not now[start][0] or not before[start][0]):
        start -= 1
    while stop < len(now) and (not now[stop][0] or not before[stop][0]):
        stop += 1
    return start, stop
