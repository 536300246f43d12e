"""What is shown on terminals without colours, with sixteen, or without the characters of charts and frames.

Each is a filter that every line of every widget passes through, as the last but one step before it is painted; so no
widget needs to know. `choose_filters` looks at the environment once.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

READABLE = 4.5
"""Contrast of text to its background (WCAG 2, level AA)."""
STANDS_OUT = 1.9
"""Contrast of two backgrounds from which one is a mark, such as the cursor in a list, and no shade."""


# ── contrast ──────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(4096)
def _luminance(rgb: tuple[int, int, int]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """The ratio of WCAG 2, from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _rgb(color: RichColor | None) -> tuple[int, int, int] | None:
    if color is None or color.is_default:
        return None
    triplet = color.get_truecolor()
    return (triplet.red, triplet.green, triplet.blue)


class Styled(LineFilter):
    """Changes the style of every segment: subclasses give `restyle`, whose results are kept."""

    def __init__(self) -> None:
        super().__init__()
        self._restyle: Callable[[Style, tuple[int, int, int], bool], Style] = lru_cache(4096)(self.restyle)

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment
            if segment.control or segment.style is None
            else Segment(segment.text, self._restyle(segment.style, background.rgb, _has_text(segment.text)))
            for segment in segments
        ]

    def restyle(self, style: Style, behind: tuple[int, int, int], text: bool) -> Style:
        """The style of a segment with or without `text` on a widget with this background."""
        raise NotImplementedError


def _has_text(text: str) -> bool:
    return any(map(str.isalnum, text))


class Readable(Styled):
    """Darkens or lightens text that is too close to its background. The app's own themes need none; others do, as do
    the colours of syntax in them."""

    def restyle(self, style: Style, behind: tuple[int, int, int], text: bool) -> Style:
        fore, back = _rgb(style.color), _rgb(style.bgcolor) or behind
        if not text or fore is None or contrast(fore, back) >= READABLE:
            return style
        end = (0, 0, 0) if contrast((0, 0, 0), back) > contrast((255, 255, 255), back) else (255, 255, 255)
        for share in range(1, 11):
            mixed = tuple(round(a + (b - a) * share / 10) for a, b in zip(fore, end, strict=True))
            if contrast((mixed[0], mixed[1], mixed[2]), back) >= READABLE:
                return style + Style(color=RichColor.from_rgb(*mixed))
        return style + Style(color=RichColor.from_rgb(*end))


class Colourless(Styled):
    """NO_COLOR: no colour at all. What a background marks is shown in reverse; the rest keeps its attributes.

    `background` is a function to the colour that the screen has.
    """

    def __init__(self, background: Callable[[], tuple[int, int, int]]) -> None:
        super().__init__()
        self._background = background

    def restyle(self, style: Style, behind: tuple[int, int, int], text: bool) -> Style:
        back = _rgb(style.bgcolor)
        marked = back is not None and contrast(back, self._background()) >= STANDS_OUT
        plain = style.without_color + Style(meta=style.meta or None)  # what a click does
        return plain + Style(reverse=not style.reverse) if marked else plain


class Sixteen(Styled):
    """A terminal with sixteen colours, which it may have set as it likes: text and background never share one."""

    def restyle(self, style: Style, behind: tuple[int, int, int], text: bool) -> Style:
        fore, back = _rgb(style.color), _rgb(style.bgcolor)
        dark = _luminance(back or behind) < 0.18
        under = _nearest_ground(back or behind)
        over = 15 if dark else 0
        if fore is not None:
            over = _hue(fore, dark) if under in (0, 15) else over
            if not text and contrast(fore, back or behind) < 2.5:
                over = 8 if dark else 7  # axes, frames of what has no focus
        return style + Style(color=RichColor.from_ansi(over), bgcolor=RichColor.from_ansi(under))


def _nearest_ground(rgb: tuple[int, int, int]) -> int:
    """Black, white, or for what stands out between them blue."""
    light = _luminance(rgb)
    return 0 if light < 0.03 else 15 if light > 0.6 else 4


def _hue(rgb: tuple[int, int, int], dark: bool) -> int:
    """The colour of the sixteen with this hue; without one, the colour of text."""
    hue, _, saturation = colorsys.rgb_to_hls(*(part / 255 for part in rgb))
    if saturation < 0.22:
        light = _luminance(rgb)
        return (7 if light < 0.45 else 15) if dark else (8 if light > 0.12 else 0)
    at = (1, 3, 2, 6, 4, 5)[round(hue * 6) % 6]
    return at + 8 if dark else at


# ── characters ────────────────────────────────────────────────────────────────────────────────────────────────────

PLAIN = {
    **dict.fromkeys("─━═╌╍┄╴╶╸╺▔", "-"),
    **dict.fromkeys("│┃║╎┆┊▏▎▍▕▌▐❘‖", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼┏┓┗┛┣┫┳┻╋╔╗╚╝╠╣╦╩╬╷╵", "+"),
    **dict.fromkeys("█▉▊▋▓■▇▆", "#"),
    **dict.fromkeys("▒▅▄▀", "="),
    **dict.fromkeys("░▃▂▁", "_"),
    **dict.fromkeys("●•◆★✚◉▪", "*"),
    **dict.fromkeys("○◌◇☆·∙⋅◦", "."),
    **dict.fromkeys("▲△↑⬆▴", "^"),
    **dict.fromkeys("▼▽↓⬇▾", "v"),
    **dict.fromkeys("▶▸→›»⏵❯", ">"),
    **dict.fromkeys("◀◂←‹«", "<"),
    **dict.fromkeys("✗✖×✘", "x"),
    **dict.fromkeys("✓✔", "v"),
    **dict.fromkeys("…", "."),
    **dict.fromkeys("–—−", "-"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("≤", "<"), "≥": ">", "≈": "~", "±": "~", "⌫": "<", "⏎": "<", "↵": "<", "µ": "u", "²": "2",
    **dict.fromkeys("◐◑◒◓◔◍☐ø", "o"), "⏸": "=", "☑": "x", "⚠": "!", "↔": "-", "↕": "|",
    "°": "'", "\ufffd": "?",
}  # fmt: skip
"""Characters of charts, frames and marks -> one of ASCII of the same width."""
_ROWS = (0x09, 0x12, 0x24, 0xC0)
"""The dots of each row of a cell of braille, from the top."""
_CHESSBOARD = (0b0101_1010 | 0x40, 0b1010_0101)


def _plain_braille(bits: int) -> str:
    """ASCII that looks most like these dots."""
    used = [row for row, mask in enumerate(_ROWS) if bits & mask]
    if not used:
        return " "
    if len(used) >= 3:
        left, right = bits & 0x47, bits & 0xB8
        both = left.bit_count() >= 3 and right.bit_count() >= 3
        return "#" if both else "|" if not (left and right) else _slope(bits)
    if len(used) == 2 and used[1] - used[0] > 1:
        return ":"
    if len(used) == 2 and bits.bit_count() <= 2:
        return _slope(bits)
    return "'-_."[0] if used[-1] == 0 else "-" if used[0] < 2 else "." if used[0] == 2 else "_"


def _slope(bits: int) -> str:
    """Whether the dots rise or fall from the left to the right."""
    left = [row for row, mask in enumerate(_ROWS) if bits & mask & 0x47]
    right = [row for row, mask in enumerate(_ROWS) if bits & mask & 0xB8]
    if not left or not right:
        return "|"
    fall = sum(right) / len(right) - sum(left) / len(left)
    return "\\" if fall > 0.4 else "/" if fall < -0.4 else "|"


TABLE: Mapping[int, str] = {
    **{ord(mark): plain for mark, plain in PLAIN.items()},
    **{0x2800 + bits: _plain_braille(bits) for bits in range(256)},
}


class Ascii(LineFilter):
    """Draws charts, frames and marks with ASCII. Letters of any writing stay: they are what is being said."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment
            if segment.control or segment.text.isascii()
            else Segment(segment.text.translate(TABLE), segment.style)
            for segment in segments
        ]


def needs_ascii(environment: Mapping[str, str]) -> bool:
    """Whether the terminal has no braille: the console of Linux, or a locale with another encoding than UTF-8.

    A locale that is not set says nothing: containers have none, and their terminals have all characters. So has a
    browser, whatever the locale of the terminal that serves it."""
    if environment.get("TEXTUAL_DRIVER", "").endswith(":WebDriver"):
        return False
    if environment.get("TERM") == "linux":
        return True
    named = next((environment[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)), "")
    encoding = named.partition(".")[2].partition("@")[0].lower().replace("-", "")
    return named in ("C", "POSIX") if not encoding else encoding != "utf8"


def has_colour(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether colours may be used (https://no-color.org)."""
    return not environment.get("NO_COLOR")


def choose_filters(
    environment: Mapping[str, str],
    colours: str | None,
    plain: str,
    background: Callable[[], tuple[int, int, int]],
) -> Iterator[LineFilter]:
    """The filters for a terminal with this environment and Rich's name of its colours. `plain` is the setting: `true`,
    `false`, or else the environment tells."""
    if not has_colour(environment):
        yield Colourless(background)
    else:
        yield Readable()
        if colours == "standard":
            yield Sixteen()
    if plain == "true" or (plain != "false" and needs_ascii(environment)):
        yield Ascii()
