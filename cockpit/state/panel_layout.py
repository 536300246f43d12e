"""Which panels of metrics are shown, in which order and how; kept for each profile. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FIRST = ("train/loss", "eval/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second")
"""Metrics that come before the others until the user moves them."""
PANEL_WIDTH, PANEL_HEIGHT = 38, 8
"""Cells that a panel needs at least."""
SHAPE = 4.0
"""The width of a good panel, in heights."""
NOISY = 0.6
"""The smoothing of metrics of training steps until the user changes it."""


@dataclass(frozen=True)
class PanelLayout:
    order: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()
    logarithmic: frozenset[str] = frozenset()
    smoothing: Mapping[str, float] = field(default_factory=dict)
    kind: str = "step"
    """The horizontal axis."""

    def arrange(self, names: Iterable[str], words: str = "") -> list[str]:
        """The metrics to show, in order: those that the filter lets through, without hidden ones. A filter shows hidden
        ones too."""
        shown = [name for name in self._all(names) if words or name not in self.hidden]
        return [name for name in shown if matches(name, words)]

    def _all(self, names: Iterable[str]) -> list[str]:
        known = {name: at for at, name in enumerate(self.order)}
        first = {name: at for at, name in enumerate(FIRST)}

        def place(name: str) -> tuple[int, int, str]:
            return known.get(name, len(known)), first.get(name, len(first)), name

        return sorted(set(names), key=place)

    def moved(self, name: str, by: int, names: Iterable[str], words: str = "") -> PanelLayout:
        """The layout with a panel moved past `by` of its neighbours."""
        everything, shown = self._all(names), self.arrange(names, words)
        if name not in shown:
            return self
        other = shown[max(0, min(len(shown) - 1, shown.index(name) + by))]
        if other == name:
            return self
        everything.remove(name)
        everything.insert(everything.index(other) + (by > 0), name)
        return replace(self, order=tuple(everything))

    def toggled(self, name: str) -> PanelLayout:
        """The layout with a panel hidden, or shown again."""
        return replace(self, hidden=self.hidden ^ {name})

    def adjusted(self, name: str, *, logarithmic: bool, smoothing: float, kind: str) -> PanelLayout:
        """The layout with a panel's scale and smoothing, and the axis of all."""
        scales = self.logarithmic | {name} if logarithmic else self.logarithmic - {name}
        smoothings = self.smoothing if smoothing == self.smooth(name) else {**self.smoothing, name: smoothing}
        return replace(self, logarithmic=scales, smoothing=smoothings, kind=kind)

    def smooth(self, name: str) -> float:
        usual = NOISY if name.startswith("train/") and name != "train/learning_rate" else 0.0
        return self.smoothing.get(name, usual)

    def to_json(self) -> dict[str, Any]:
        return {
            "order": list(self.order),
            "hidden": sorted(self.hidden),
            "logarithmic": sorted(self.logarithmic),
            "smoothing": dict(self.smoothing),
            "kind": self.kind,
        }

    @classmethod
    def from_json(cls, found: object) -> PanelLayout:
        """The layout that was kept. Whatever is not as it was written is left out."""
        kept = found if isinstance(found, dict) else {}

        def names(key: str) -> list[str]:
            listed = kept.get(key)
            return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []

        given = kept.get("smoothing")
        smoothing = {
            str(name): float(value)
            for name, value in (given.items() if isinstance(given, dict) else ())
            if isinstance(value, (int, float)) and 0 <= value <= 0.99
        }
        kind = kept.get("kind")
        return cls(
            tuple(dict.fromkeys(names("order"))),
            frozenset(names("hidden")),
            frozenset(names("logarithmic")),
            smoothing,
            kind if isinstance(kind, str) else "step",
        )


def matches(name: str, words: str) -> bool:
    """Whether a metric has all words of a filter in its name; a word after `!` must not be in it."""
    lower = name.lower()
    return all(
        (word[1:] not in lower if word.startswith("!") and len(word) > 1 else word in lower)
        for word in words.lower().split()
    )


def panel_grid(width: int, height: int, count: int) -> tuple[int, int]:
    """Columns and rows of panels for `count` metrics: all of them if that leaves each enough room, else as many as have
    it."""
    width, height = max(1, width), max(1, height)
    most_columns, most_rows = max(1, width // PANEL_WIDTH), max(1, height // PANEL_HEIGHT)
    count = max(1, min(count, most_columns * most_rows))
    fitting = [
        (columns, -(-count // columns)) for columns in range(1, most_columns + 1) if -(-count // columns) <= most_rows
    ]

    def waste(grid: tuple[int, int]) -> tuple[float, int]:
        columns, rows = grid
        return abs(math.log((width / columns) / (height / rows) / SHAPE)) + 0.3 * (columns * rows - count), columns

    return min(fitting, key=waste)


def page_of(names: Sequence[str], size: int, page: int) -> tuple[list[str], int, int]:
    """The metrics of a page, the page's number within bounds, and how many pages there are."""
    pages = max(1, -(-len(names) // max(1, size)))
    page = max(0, min(pages - 1, page))
    return list(names[page * size : (page + 1) * size]), page, pages
