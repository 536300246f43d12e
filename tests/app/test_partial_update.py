"""What a partial repaint writes."""

from __future__ import annotations

from rich.console import Console
from rich.segment import Segment
from textual.strip import Strip

from cockpit.partial_update import PartialUpdate


def test_only_the_cells_of_a_span_are_written() -> None:
    row = {0: Strip([Segment("abcdef"), Segment("ghij")]), 10: None, 15: Strip([Segment("klmno")])}
    update = PartialUpdate([row], [(0, 4, 7), (0, 9, 17), (0, 19, 20)], [[10, 15, 20]])
    assert update.render_segments(Console()) == "\x1b[1;5Hefg\x1b[1;10Hj\x1b[1;16Hkl\x1b[1;20Ho"
