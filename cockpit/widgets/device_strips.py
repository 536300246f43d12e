"""Rows of bars, one for each device, aligned with a chart above them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.device_history import HOST, QUANTITIES, Track, cells, find_stragglers, straggles
from cockpit.widgets.canvas import Canvas
from cockpit.widgets.chart_raster import CROSS, GUTTER, LABEL, LINE, MARKER, SECOND, Row

BARS = " ▁▂▃▄▅▆▇█"


class DeviceStrips(Canvas):
    """One quantity of all devices. `show` draws the tracks between the moments at the edges of the chart's cells."""

    DEFAULT_CSS = """
    DeviceStrips { border: round $primary; border-title-color: $accent; border-subtitle-color: $text-muted; }
    """

    def __init__(self, quantity: str) -> None:
        super().__init__()
        self.quantity = quantity
        self._titles = ("", "")

    def show(
        self, tracks: Sequence[Track], moments: Sequence[float], cross: float | None = None, note: str = ""
    ) -> None:
        """`moments`: one more than the plot has cells. `cross`: the moment of the crosshair, whose values are then
        written in place of the means; `note`: which of the devices these are, where not all have room."""
        height, width = self.content_size.height, self.content_size.width
        subtitle = (tr("at the crosshair") if cross is not None else tr("mean of what is shown")) + note
        if self._titles != (self.quantity, subtitle):
            self._titles = self.quantity, subtitle
            self.border_title, self.border_subtitle = Content(tr(self.quantity)), Content(subtitle)
        if not tracks or height < 1 or width <= GUTTER:
            self.paint([])
            return
        tall = max(1, min(3, height // len(tracks)))
        found = [cells(track, moments) for track in tracks]
        means = [fmean(values) if (values := [cell[0] for cell in row if cell]) else None for row in found]
        utilisation = self.quantity == "utilisation"
        slow = find_stragglers(found) if utilisation else [[False] * len(row) for row in found]
        column = _find_column(moments, cross)
        rows: list[Row] = []
        for track, row, mean, behind in zip(tracks, found, means, slow, strict=True):
            value = mean if cross is None else track.at(cross)
            rows += self._draw(track.label, row, value, behind, tall, column)
        self.paint([(text[:width].ljust(width), roles[:width].ljust(width, b"\0")) for text, roles in rows[:height]])

    def _draw(
        self,
        label: str,
        row: Sequence[tuple[float, float] | None],
        value: float | None,
        behind: Sequence[bool],
        tall: int,
        column: int | None,
    ) -> list[Row]:
        """A row of bars, `tall` lines high, with label and value before the first. `behind`: where it straggles."""
        marked = straggles(behind)
        lines = []
        written = "–" if value is None else self._write(value)
        for line in range(tall - 1, -1, -1):
            name = f"{label:>2}{'▼' if marked else ' '}"[:3]
            head = f"{name}{written:>4}" if line == tall - 1 else ""
            text, roles = [f"{head[:GUTTER]:<{GUTTER}}"], bytearray([MARKER if marked else LABEL] * GUTTER)
            for at, cell in enumerate(row):
                level = 0 if cell is None else max(1, round(cell[1] * tall * 8))
                bar = BARS[max(0, min(8, level - 8 * line))]
                if at == column and bar == " ":
                    bar = "│"
                alarming = cell is not None and self._alarms(*cell)
                text.append(bar)
                roles.append(CROSS if at == column else MARKER if behind[at] or alarming else self._role)
            lines.append(("".join(text), bytes(roles)))
        return lines

    @property
    def _role(self) -> int:
        return SECOND if self.quantity == "utilisation" else LINE

    def _write(self, value: float) -> str:
        if self.quantity == HOST:
            return f"{value:.0f}%"
        return next(each.write(value) for each in QUANTITIES if each.name == self.quantity)

    def _alarms(self, value: float, share: float) -> bool:
        return any(each.alarms(value, share) for each in QUANTITIES if each.name == self.quantity)


def _find_column(moments: Sequence[float], cross: float | None) -> int | None:
    if cross is None:
        return None
    return next((at for at in range(len(moments) - 1) if moments[at] <= cross <= moments[at + 1]), None)
