"""Our themes can be read: text of every colour stands out from every background, in the dark and in the light one."""

from __future__ import annotations

import pytest
from textual.color import Color

from cockpit.screens.profile import ProfileScreen
from cockpit.state.formatting import counted, format_epochs
from cockpit.state.run_history import format_value
from cockpit.theme import COCKPIT, COCKPIT_LIGHT
from tests.app.fake import demo_run
from tests.app.screen import HIGH, run_app, screen_text, until
from tests.app.services import FakeServices

TEXT = ("foreground", "accent", "success", "warning", "error", "text-error", "text-success", "text-warning")
READABLE = 4.5


def contrast(one: Color, other: Color) -> float:
    """The ratio of WCAG 2."""

    def luminance(color: Color) -> float:
        parts = [part / 255 for part in color.rgb]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [COCKPIT, COCKPIT_LIGHT], ids=lambda theme: theme.name)
def test_every_colour_of_text_stands_out_from_every_background(theme: object) -> None:
    colours = theme.to_color_system().generate()  # type: ignore[attr-defined]
    for background in ("background", "surface", "panel"):
        below = Color.parse(colours[background])
        for name in TEXT:
            reached = contrast(below, Color.parse(colours[name]))
            assert reached >= READABLE, (name, background, round(reached, 2))


async def test_yaml_can_be_read_in_the_light_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")  # with sixteen colours a filter chooses them
    async with run_app(FakeServices(), HIGH, first="profile") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ProfileScreen)
        await until(pilot, lambda: screen.editor.text)
        pilot.app.theme = "cockpit-light"
        await pilot.pause(0.3)
        region = screen.editor.region
        for y in range(region.y, region.bottom):
            x = 0
            for segment in pilot.app.screen._compositor.render_strips()[y]:
                style, word = segment.style, segment.text.strip()
                inside = region.x + screen.editor.gutter_width <= x < region.right
                x += segment.cell_length
                if not (inside and any(map(str.isalnum, word)) and style and style.color and style.bgcolor):
                    continue
                fore, back = Color.from_rich_color(style.color), Color.from_rich_color(style.bgcolor)
                assert contrast(back, fore) >= READABLE, (word, fore.hex, back.hex)


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(1, "row"), counted(1200, "row"), counted(1.0, "epoch"), counted(0.5, "epoch")] == [
        "1 row",
        "1,200 rows",
        "1 epoch",
        "0.5 epochs",
    ]
    assert (counted(1, "reply"), counted(2, "reply")) == ("1 reply", "2 replies")
    assert format_value([{"source": "a"}]) == "1 row"
    assert [format_epochs(each) for each in (1.0, 8.69565, 0.62, 12.0, 33.333)] == ["1", "8.7", "0.62", "12", "33.3"]


async def test_a_pause_is_said_once() -> None:
    run = demo_run(state="paused", reason="asked", phase="paused asked", code="pause.asked", epochs=8.69565)
    async with run_app(FakeServices(run)) as pilot:
        await until(pilot, lambda: "paused" in screen_text(pilot))
        assert screen_text(pilot).splitlines()[1].count("asked") == 1
        assert "/8.7" in screen_text(pilot)
