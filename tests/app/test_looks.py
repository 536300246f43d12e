"""Every screen in every look: what it says, at which contrast, and without colours or beyond ASCII where asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.segment import Segment
from textual.color import Color
from textual.pilot import Pilot

from cockpit.looks import READABLE, TABLE, contrast, needs_ascii
from cockpit.verbs import open_app
from engine.protocol.messages import ProblemError
from tests.app.gallery import LOOKS, captures
from tests.app.screen import assert_fits, screen_text

FEW = ("16 colours light", "ASCII")
"""Looks that differ from another only in a filter: one size is enough."""


def segments(pilot: Pilot[None]) -> Iterator[Segment]:
    for strip in pilot.app.screen._compositor.render_strips():
        yield from strip


def assert_readable(pilot: Pilot[None], name: str) -> None:
    for text, style, _ in segments(pilot):
        if style and style.color and style.bgcolor and any(map(str.isalnum, text)):
            fore, back = (Color.from_rich_color(each).rgb for each in (style.color, style.bgcolor))
            assert contrast(fore, back) >= READABLE, (name, text, fore, back, round(contrast(fore, back), 2))


@pytest.mark.parametrize("look", LOOKS)
async def test_every_screen_at_every_size(look: str) -> None:
    sizes = {"sizes": ((120, 40),)} if look in FEW else {}
    seen = set()
    async for shot, size, pilot in captures(look, **sizes):
        text = screen_text(pilot)
        seen.add((shot.name, size))
        for word in shot.says:
            assert word in text, (shot.name, size, text)
        assert_fits(pilot)
        if look in ("dark", "light"):
            assert not any(type(each).__name__ == "Ascii" for each in pilot.app.get_line_filters())
            assert_readable(pilot, f"{shot.name} {size}")
        if look == "NO_COLOR":
            coloured = [each for each in segments(pilot) if each.style and (each.style.color or each.style.bgcolor)]
            assert not coloured, (shot.name, coloured[:3])
        if look.startswith("16"):
            for each in segments(pilot):
                if each.style and each.style.color and each.style.bgcolor and each.text.strip():
                    numbers = each.style.color.number, each.style.bgcolor.number
                    assert None not in numbers and numbers[0] != numbers[1], (shot.name, each)
        if look == "ASCII":
            odd = {character for character in text if not character.isascii() and not character.isalnum()}
            assert odd <= set("：，"), (shot.name, odd)
    assert len(seen) == 9 * (1 if look in FEW else 4)


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
