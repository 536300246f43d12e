"""Writes only the changed cells to the terminal.

Textual cuts a repaint at the right end of a changed span, but not at the left: a new point at the right edge of a chart
would send its whole row, about 20 times as much.
"""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate


class PartialUpdate(ChopsUpdate):
    """Textual's partial update, cut at both ends."""

    def render_segments(self, console: Console) -> str:
        written = []
        for y, left, right in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                start, stop = max(x, left), min(end, right)
                if strip is not None and start < stop:
                    written.append(Control.move_to(start, y).segment.text)
                    written.append(strip.crop(start - x, stop - x).render(console))
        return "".join(written)
