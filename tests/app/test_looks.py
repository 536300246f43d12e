"""Every screen in every look: what it says, at which contrast, and without colours or beyond ASCII where asked."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter
from textual.pilot import Pilot

from cockpit.language.translate import current_language, set_language
from cockpit.looks import READABLE, TABLE, Ascii, Colourless, Sixteen, choose_filters, contrast, needs_ascii
from cockpit.verbs import open_app
from engine.protocol.messages import ProblemError
from tests.app.gallery import SHOTS, SIZES, Shot, capture
from tests.app.screen import assert_fits

Drawn = list[list[Segment]]
THEMES = ("cockpit", "cockpit-light")
CHINESE = {
    "dashboard": ("运行中", "损失", "暂停"),
    "data": ("数据", "没有打开数据", "打开"),
    "profile": ("另存为", "内置", "运行的名字"),
    "runs": ("失败", "状态", "按 最新 排序"),
    "chat": ("尚未加载", "目标", "f1 帮助"),
    "doctor": ("诊断", "要求未通过", "重新执行"),
    "metrics": ("指标", "最大化"),
    "results": ("结果", "达标", "回复"),
    "help": ("帮助", "Esc 关闭", "操控这次运行"),
}
"""Screen -> words that it shows at any size in Chinese."""
COCKPIT = Path(__file__).parents[2] / "cockpit"


def draw(pilot: Pilot[None]) -> Drawn:
    """The lines of the screen."""
    return [list(strip) for strip in pilot.app.screen._compositor.render_strips()]


def look_at(drawn: Drawn, look: LineFilter, ground: Color) -> Drawn:
    """The lines, passed through one more filter."""
    return [look.apply(line, ground) for line in drawn]


def unreadable(drawn: Drawn) -> Iterator[object]:
    for text, style, _ in (each for line in drawn for each in line):
        if style and style.color and style.bgcolor and any(map(str.isalnum, text)):
            fore, back = (Color.from_rich_color(each).rgb for each in (style.color, style.bgcolor))
            if (found := contrast(fore, back)) < READABLE:
                yield text, fore, back, round(found, 2)


def coloured(drawn: Drawn) -> Iterator[object]:
    yield from (each for line in drawn for each in line if each.style and (each.style.color or each.style.bgcolor))


def beyond_sixteen(drawn: Drawn) -> Iterator[object]:
    """What has no colour of the sixteen, or text in the colour that it stands on."""
    for each in (each for line in drawn for each in line if each.style and each.text.strip()):
        assert each.style is not None
        numbers = [color.number for color in (each.style.color, each.style.bgcolor) if color]
        if any(number is None or number > 15 for number in numbers) or len(set(numbers)) < len(numbers):
            yield each


def beyond_ascii(drawn: Drawn) -> Iterator[object]:
    said = {letter for line in drawn for each in line for letter in each.text}
    yield from (letter for letter in said if not letter.isascii() and not letter.isalnum() and cell_len(letter) < 2)


def repeated(bar: str) -> list[str]:
    """What the bar of keys says more than once."""
    entries = [entry for entry in re.split(r"\s{2,}", bar.strip()) if entry]
    return [entry for entry, times in Counter(entries).items() if times > 1]


async def test_every_screen_at_every_size_in_every_look() -> None:
    """The looks that are filters are applied to what one app for each language has drawn; the test below has an app for
    each."""
    wrong: dict[tuple[object, ...], list[object]] = {}
    said: dict[str, tuple[str, ...]] = {shot.name: shot.says for shot in SHOTS}

    def take(shot: Shot, size: tuple[int, int], pilot: Pilot[None]) -> None:
        drawn = draw(pilot)
        text = "\n".join("".join(each.text for each in line) for line in drawn)
        ground = pilot.app.screen.background_colors[1]
        theme = str(pilot.app.theme)
        assert (ground.brightness > 0.5) == theme.endswith("light")
        found = {
            "words": iter([text] if any(word not in text for word in said[shot.name]) else []),
            "each key once": iter(repeated(text.splitlines()[-1])),
            "colours": unreadable(drawn),
            "NO_COLOR": coloured(look_at(drawn, Colourless(lambda: ground.rgb), ground)),
            "16 colours": beyond_sixteen(look_at(drawn, Sixteen(), ground)),
            "ASCII": beyond_ascii(look_at(drawn, Ascii(), ground)),
        }
        if shot.name != "help":  # it scrolls
            assert_fits(pilot)
        place = current_language(), theme, shot.name, size
        wrong.update({(*place, look): list(each)[:4] for look, each in found.items()})

    await capture("dark", take, themes=THEMES)
    set_language("zh")
    try:
        said = CHINESE
        await capture("light", take)
    finally:
        set_language("en")
    assert len(wrong) == 3 * len(SHOTS) * len(SIZES) * 6
    assert not {place: found for place, found in wrong.items() if found}


async def test_text_can_be_read_in_another_theme() -> None:
    wrong: dict[str, list[object]] = {}

    def take(shot: Shot, size: tuple[int, int], pilot: Pilot[None]) -> None:
        assert pilot.app.theme == "solarized-light"
        drawn, ground = draw(pilot), pilot.app.screen.background_colors[1]
        wrong[shot.name] = [*unreadable(drawn), *beyond_sixteen(look_at(drawn, Sixteen(), ground))][:4]

    await capture("solarized", take, ((120, 40),), SHOTS[2:4])
    assert wrong and not {place: found for place, found in wrong.items() if found}


@pytest.mark.parametrize(
    ("look", "check"), [("NO_COLOR", coloured), ("16 colours", beyond_sixteen), ("ASCII", beyond_ascii)]
)
async def test_the_environment_and_the_settings_choose_the_look(
    look: str, check: Callable[[Drawn], Iterator[object]]
) -> None:
    wrong: list[object] = []
    await capture(look, lambda shot, size, pilot: wrong.extend(check(draw(pilot))), ((120, 40),), SHOTS[:1])
    assert not wrong[:3]


def test_a_plain_character_is_as_wide_as_what_it_stands_for() -> None:
    assert not [chr(mark) for mark, plain in TABLE.items() if cell_len(chr(mark)) != len(plain) or not plain.isascii()]


def test_no_line_to_type_in_has_a_frame_in_a_frame() -> None:
    found = [
        ast.unparse(node)
        for path in COCKPIT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Input"
    ]
    assert len(found) >= 8 and not [each for each in found if "compact=True" not in each]


def test_there_is_ascii_for_every_mark_in_the_sources() -> None:
    drawn: dict[str, str] = {}
    for path in (file for part in ("screens", "state", "widgets") for file in (COCKPIT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                drawn |= dict.fromkeys(node.value, path.name)
    assert len(drawn) > 100
    marks = {mark: name for mark, name in drawn.items() if not mark.isascii() and not mark.isalnum()}
    assert not {mark: name for mark, name in marks.items() if ord(mark) not in TABLE}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"LANG": "en_GB.UTF-8"}, False),
        ({"LC_ALL": "zh_CN.utf8"}, False),
        ({"LC_ALL": "C", "LANG": "en_GB.UTF-8"}, True),
        ({"LANG": "zh_CN.GBK"}, True),
        ({"TERM": "linux", "LANG": "en_GB.UTF-8"}, True),
        ({"LANG": "C", "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver"}, False),
    ],
)
def test_ascii_where_braille_is_missing(environment: dict[str, str], wanted: bool) -> None:
    assert needs_ascii(environment) is wanted


@pytest.mark.parametrize(("setting", "wanted"), [("true", True), ("false", False), ("", True)])
def test_the_setting_decides_over_the_locale(setting: str, wanted: bool) -> None:
    filters = choose_filters({"LANG": "C"}, "truecolor", setting, lambda: (0, 0, 0))
    assert any(isinstance(each, Ascii) for each in filters) is wanted


def test_a_terminal_that_moves_no_cursor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_app, "is_interactive", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(ProblemError, match="cannot show the app") as refused:
        open_app.open_app(None)  # type: ignore[arg-type]
    assert "TERM is dumb" in refused.value.problem.cause and "cockpit watch" in refused.value.problem.hint
