"""Which part of its curves a chart shows: all, the newest part, or a range that stays. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_ZOOM = 10
"""How often the newest part can be halved."""
STEP = 0.25
"""The share of the range that it moves by."""


@dataclass(frozen=True)
class Window:
    """`zoom` halves the newest part, which follows the run; `range` is a range that stays."""

    zoom: int = 0
    range: tuple[float, float] | None = None

    def resolve(self, first: float, edge: float, least: float = 4.0) -> tuple[float, float]:
        """The range to show of curves from `first` to the right edge `edge`."""
        if self.range is not None:
            return self.range
        return (edge - max(least, (edge - first) / 2**self.zoom), edge) if self.zoom else (first, edge)

    def zoomed(self, direction: int, whole: tuple[float, float], at: float | None, least: float = 4.0) -> Window:
        """+1 shows half of the range, -1 twice as much: around `at`; without it, the newest part."""
        if self.range is None and at is None:
            return Window(max(0, min(MAX_ZOOM, self.zoom + direction)))
        low, high = self.resolve(*whole, least)
        centre = (low + high) / 2 if at is None else max(low, min(high, at))
        factor = 0.5 if direction > 0 else 2.0
        wanted = max(least, (high - low) * factor)
        start = centre - (centre - low) / ((high - low) or 1.0) * wanted
        return self._within(start, start + wanted, whole)

    def panned(self, direction: float, whole: tuple[float, float], least: float = 4.0) -> Window:
        """The range moved by a quarter of itself, as far as there are curves."""
        low, high = self.resolve(*whole, least)
        by = direction * STEP * (high - low)
        by = max(whole[0] - low, min(whole[1] - high, by))
        if by == 0:
            return self
        return self._within(low + by, high + by, whole)

    def on(self, one: float, other: float, whole: tuple[float, float], least: float = 4.0) -> Window:
        """The range between two positions."""
        low, high = min(one, other), max(one, other)
        spare = max(0.0, least - (high - low)) / 2
        return self._within(low - spare, high + spare, whole)

    def following(self) -> Window:
        """The newest part again; a range that stays is left."""
        return replace(self, range=None)

    @staticmethod
    def _within(low: float, high: float, whole: tuple[float, float]) -> Window:
        low, high = max(low, whole[0]), min(high, whole[1])
        return Window() if low <= whole[0] and high >= whole[1] else Window(range=(low, high))
