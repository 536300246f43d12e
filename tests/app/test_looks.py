"""Every screen in every look: what it says, at which contrast, and without colours or beyond ASCII where asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rich.segment import Segment
from textual.color import Color
from textual.pilot import Pilot

from cockpit.looks import READABLE, TABLE, contrast, needs_ascii
from cockpit.verbs import open_app
from engine.protocol.messages import ProblemError
from tests.app.gallery import LOOKS, SHOTS, SIZES, Shot, capture
from tests.app.screen import assert_fits, screen_text

FEW = ("16 colours light", "ASCII")
"""Looks that differ from another only in a filter: one size is enough."""


def segments(pilot: Pilot[None]) -> Iterator[Segment]:
    for strip in pilot.app.screen._compositor.render_strips():
        yield from strip


def examine(look: str, shot: Shot, size: tuple[int, int], pilot: Pilot[None]) -> Iterator[object]:
    """What is wrong with a capture."""
    text = screen_text(pilot)
    yield from (f"{word!r} is missing in:\n{text}" for word in shot.says if word not in text)
    assert_fits(pilot)
    drawn = [each for each in segments(pilot) if each.style and each.text.strip()]
    if look in ("dark", "light"):
        yield from unreadable(drawn)
    if look == "NO_COLOR":
        yield from (each for each in segments(pilot) if each.style and (each.style.color or each.style.bgcolor))
    if look.startswith("16"):
        for each in drawn:
            assert each.style is not None
            numbers = [color.number for color in (each.style.color, each.style.bgcolor) if color]
            if None in numbers or numbers[:1] == numbers[1:]:
                yield each
    if look == "ASCII":
        yield from {odd for odd in text if not odd.isascii() and not odd.isalnum() and odd not in "：，"}


def unreadable(drawn: list[Segment]) -> Iterator[object]:
    for text, style, _ in drawn:
        if style and style.color and style.bgcolor and any(map(str.isalnum, text)):
            fore, back = (Color.from_rich_color(each).rgb for each in (style.color, style.bgcolor))
            if (found := contrast(fore, back)) < READABLE:
                yield text, fore, back, round(found, 2)


@pytest.mark.parametrize("look", LOOKS)
async def test_every_screen_at_every_size(look: str) -> None:
    wrong: dict[tuple[str, tuple[int, int]], list[object]] = {}

    def take(shot: Shot, size: tuple[int, int], pilot: Pilot[None]) -> None:
        wrong[shot.name, size] = list(examine(look, shot, size, pilot))[:4]

    await capture(look, take, ((120, 40),) if look in FEW else SIZES)
    assert len(wrong) == len(SHOTS) * (1 if look in FEW else len(SIZES))
    assert not {place: found for place, found in wrong.items() if found}


def test_a_plain_character_is_as_wide_as_what_it_stands_for() -> None:
    from rich.cells import cell_len

    assert not [chr(mark) for mark, plain in TABLE.items() if cell_len(chr(mark)) != len(plain) or not plain.isascii()]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"LANG": "en_GB.UTF-8"}, False),
        ({"LC_ALL": "zh_CN.utf8"}, False),
        ({"LC_ALL": "C", "LANG": "en_GB.UTF-8"}, True),
        ({"LANG": "zh_CN.GBK"}, True),
        ({"TERM": "linux", "LANG": "en_GB.UTF-8"}, True),
    ],
)
def test_ascii_where_braille_is_missing(environment: dict[str, str], wanted: bool) -> None:
    assert needs_ascii(environment) is wanted


def test_a_terminal_that_moves_no_cursor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_app, "is_interactive", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(ProblemError, match="cannot show the app") as refused:
        open_app.open_app(None)  # type: ignore[arg-type]
    assert "TERM is dumb" in refused.value.problem.cause and "cockpit watch" in refused.value.problem.hint
