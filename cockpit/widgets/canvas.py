"""A widget with a picture made of cells, which repaints only the spans that change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from cockpit.widgets.chart_raster import INVERSE, ROLES, SHADED, Row

RUN_COLOURS = (
    ("$accent", "$accent"),
    ("#56b4e9", "#0072b2"),
    ("#00b386", "#00694f"),
    ("#d980b4", "#9c3d74"),
    ("#f0e442", "#6b6200"),
    ("#e8743b", "#a83c00"),
    ("#7c8cf8", "#3a45b8"),
    ("$foreground", "$foreground"),
)
"""The colours of runs in one chart on dark and on light themes: those that Okabe and Ito chose to be told apart with
any colour vision, lighter or darker as the background needs."""
JOIN = 6
"""Unchanged cells between two changed ones that are cheaper to repaint than to skip."""


class Canvas(Widget):
    """Subclasses make rows of the content's size and call `paint`. The colours come from component classes, and thus
    from the theme."""

    COMPONENT_CLASSES = {f"canvas--{role}" for role in (*ROLES, "shade")}
    DEFAULT_CSS = """
    Canvas {
        & > .canvas--axis { color: $foreground 35%; }
        & > .canvas--label { color: $foreground 65%; }
        & > .canvas--band { color: $primary 75%; }
        & > .canvas--line { color: $accent; }
        & > .canvas--second { color: $success; }
        & > .canvas--marker { color: $error; text-style: bold; }
        & > .canvas--event { color: $secondary; }
        & > .canvas--bound { color: $success; }
        & > .canvas--cross { color: $foreground 60%; }
        & > .canvas--readout { color: $foreground; background: $panel; }
        & > .canvas--shade { color: $primary 45%; background: $primary 45%; }
    }
    """
    DEFAULT_CSS += "".join(
        f"Canvas > .canvas--run{at} {{ color: {dark}; }} Canvas:light > .canvas--run{at} {{ color: {light}; }}\n"
        for at, (dark, light) in enumerate(RUN_COLOURS)
    )

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._rows: list[Row] = []
        self._styles: dict[int, Style] = {}
        """Role, with what is added to it -> style."""

    def paint(self, rows: list[Row]) -> None:
        """Show these rows, repainting only what differs from the rows before."""
        old, self._rows = self._rows, rows
        if len(old) != len(rows) or not rows or len(old[0][0]) != len(rows[0][0]):
            self.refresh()
            return
        regions = [
            Region(start, y, stop - start, 1)
            for y, (before, now) in enumerate(zip(old, rows, strict=True))
            if before != now
            for start, stop in changed_spans(before, now)
        ]
        if regions:
            self.refresh(*regions)

    def notify_style_update(self) -> None:
        self._styles = {}
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if y >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        text, roles = self._rows[y]
        segments, at = [], 0
        for role, run in groupby(roles):
            length = len(list(run))
            segments.append(Segment(text[at : at + length], self._styles.get(role) or self._style(role)))
            at += length
        return Strip(segments, len(text)).adjust_cell_length(width, self.rich_style)

    @property
    def has_shades(self) -> bool:
        """Whether the terminal shows a shade between background and colour."""
        return self.app.console.color_system in ("truecolor", "256") and not self.app.no_color

    def _style(self, role: int) -> Style:
        style = self.get_component_rich_style(f"canvas--{ROLES[role & (SHADED - 1)]}")
        if role & (SHADED | INVERSE) or ROLES[role & (SHADED - 1)] == "band":
            shade = self.get_component_rich_style("canvas--shade")
            if role & INVERSE:
                style = Style(color=self.rich_style.bgcolor, bgcolor=shade.bgcolor)
            elif ROLES[role & (SHADED - 1)] == "band" and self.has_shades:
                style = Style(color=shade.bgcolor, bgcolor=self.rich_style.bgcolor)
            elif role & SHADED:
                style += Style(bgcolor=shade.bgcolor)
        self._styles[role] = style
        return style


def changed_spans(before: Row, now: Row) -> Iterator[tuple[int, int]]:
    """Start and stop of each part in which two rows of equal length differ; parts close to each other are joined."""
    differing: Sequence[int] = [
        at for at in range(len(now[0])) if before[0][at] != now[0][at] or before[1][at] != now[1][at]
    ]
    start = stop = -1
    for at in differing:
        if start >= 0 and at - stop > JOIN:
            yield start, stop
            start = at
        elif start < 0:
            start = at
        stop = at + 1
    if start >= 0:
        yield start, stop
