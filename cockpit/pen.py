"""Writes cells for a terminal, and of their looks only what changes from one cell to the next.

Rich resets the look after every piece of text and sets the next one from nothing: two colours of 16 characters each, of
which one has mostly stayed. That is more than half of what a screen costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from rich.color import Color, ColorSystem
from rich.style import Style


class Look(NamedTuple):
    """How a cell looks. What a click on it does is no part of that."""

    color: Color | None = None
    background: Color | None = None
    attributes: int = 0
    """Bits, as in `Style`."""
    link: str | None = None


Cell = tuple[str, Look]
"""A cell's character and its look. The right half of a wide character has no character."""

PLAIN = Look()
_INKED = sum(1 << bit for bit in (3, 4, 5, 6, 8, 9, 10, 11, 12))
"""Attributes that show on a blank, too: underline, blink, reverse, strike, frame, overline."""
_WEIGHT = 0b11
"""Bold and dim: one code ends both."""
_CODES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "21", "51", "52", "53")
"""Of the attributes, by their bits."""


@lru_cache(4096)
def find_looks(style: Style | None) -> tuple[Look, Look]:
    """How a style looks on a character and on a blank, where its colour does not show."""
    if style is None:
        return PLAIN, PLAIN
    look = Look(style.color, style.bgcolor, style._attributes & style._set_attributes, style.link)
    return look, look if look.attributes & _INKED or look.link else Look(background=look.background)


class Pen:
    """For a piece of output that begins and ends with the terminal's plain look."""

    def __init__(self, system: ColorSystem) -> None:
        self._system = system
        self._look = PLAIN

    def write(self, cells: Iterable[Cell]) -> Iterator[str]:
        blank: Look | None = None
        """Of the blanks before this cell."""
        for character, look in cells:
            if character != " ":
                blank = None
                if look is not self._look:
                    yield self._change(look)
            elif look is not blank:
                blank = look
                yield self._change(_on_blank(self._look, look))
            yield character

    def lift(self) -> str:
        """What ends the output."""
        return self._change(PLAIN)

    def _change(self, look: Look) -> str:
        before, self._look = self._look, look
        return _change(before, look, self._system)


def _on_blank(before: Look, look: Look) -> Look:
    """What a blank of this look needs of the pen: its colour and weight may be those of the word before."""
    if look.attributes & _INKED or look.link:
        return look
    return Look(before.color, look.background, before.attributes & ~_INKED)


@lru_cache(4096)
def _change(before: Look, now: Look, system: ColorSystem) -> str:
    """The shortest sequence that makes one look into the other."""
    whole = ["0", *_differences(PLAIN, now, system)]
    gone = before.attributes & ~now.attributes
    if not gone & ~_WEIGHT:
        weight = ["22"] if gone else []
        kept = before._replace(attributes=before.attributes & ~_WEIGHT) if gone else before
        whole = min(weight + _differences(kept, now, system), whole, key=lambda codes: len(";".join(codes)))
    codes = f"\x1b[{';'.join(whole)}m" if whole else ""
    return codes if before.link == now.link else f"\x1b]8;;{now.link or ''}\x1b\\{codes}"


def _differences(before: Look, now: Look, system: ColorSystem) -> list[str]:
    """Codes of what is in the second look and not in the first."""
    codes = [code for bit, code in enumerate(_CODES) if now.attributes & ~before.attributes & 1 << bit]
    if now.color != before.color:
        codes += now.color.downgrade(system).get_ansi_codes() if now.color else ("39",)
    if now.background != before.background:
        codes += now.background.downgrade(system).get_ansi_codes(False) if now.background else ("49",)
    return codes
