"""Shows the control characters in what any widget draws, as the last step before its lines are painted."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from engine.protocol.terminal import show_controls


class ControlFilter(LineFilter):
    """Every line of every widget passes through here, so no text from elsewhere reaches the terminal as it is."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        shown = [Segment(show_controls(text, keep=""), style) for text, style, _ in segments]
        if all(new.text == old.text for new, old in zip(shown, segments, strict=True)):
            return segments
        return _fit(shown, Segment.get_line_length(segments))


SHOW_CONTROLS = ControlFilter()


def _fit(segments: list[Segment], width: int) -> list[Segment]:
    """Give the line its width again: control characters have none, and what shows them has. Padding gives way first, so
    that frames stay in place."""
    excess = Segment.get_line_length(segments) - width
    for at in reversed(range(len(segments))):
        text = segments[at].text
        cut = min(excess, max(0, len(text) - len(text.rstrip(" ")) - 1))
        if cut > 0:
            segments[at] = Segment(text[:-cut], segments[at].style)
            excess -= cut
    return Segment.adjust_line_length(segments, width)
