"""The help dialog (`?`, F1): the keys of the current screen, grouped, then those that work everywhere, then what the
screen is for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.geometry import Size
from textual.screen import ModalScreen, Screen
from textual.widget import Widget

from cockpit.content import Content
from cockpit.keymap import names_of
from cockpit.language.translate import tr
from cockpit.screens import SCREENS
from cockpit.screens.key_help import HELP

KEY_WIDTH = 12
"""Cells of the column of keys."""
BOTH = "←→"
"""How the bar shows two keys in the place of one; help names each with its own sentence."""


class HelpText(Widget):
    """A text that is made anew for each width, before the dialog is painted."""

    DEFAULT_CSS = "HelpText { width: 1fr; height: auto; }"

    def __init__(self, write: Callable[[int], Content]) -> None:
        super().__init__()
        self._write = write

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._write(max(20, width)).plain.splitlines())

    def render(self) -> Content:
        return self._write(max(20, self.content_size.width))


class HelpScreen(ModalScreen[None]):
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: 84; max-width: 96%; height: auto; max-height: 90%; border: round $accent; background: $surface;
        padding: 0 1; scrollbar-size-vertical: 1;
    }
    """
    BINDINGS = [("escape,q,question_mark,f1", "dismiss", "Close")]

    def __init__(self, about: Screen[Any]) -> None:
        super().__init__()
        self._about = about
        self._keys = list(collect(about))

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = tr("Help")
            box.border_subtitle = tr("Esc closes")
            yield HelpText(self._text)

    def _text(self, width: int) -> Content:
        blocks: dict[str, list[Content]] = {}
        for group, key, sentence, now in self._keys:
            blocks.setdefault(group, [Content.styled(tr(group), "bold")]).extend(_line(key, tr(sentence), now, width))
        screens = " · ".join(f"{at} {tr(title)}" for at, (title, _) in enumerate(SCREENS.values(), start=1))
        everywhere = blocks.setdefault("Everywhere", [Content.styled(tr("Everywhere"), "bold")])
        everywhere[1:1] = _line(
            "1–6", tr("{screens}. While you type: alt and the digit.", screens=screens), True, width
        )
        last = blocks.pop("Everywhere")
        about = _paragraphs(tr(getattr(self._about, "HELP_TEXT", "")), width)
        return Content("\n\n").join(Content("\n").join(block) for block in (*blocks.values(), last, about) if block)


def collect(screen: Screen[Any]) -> Iterator[tuple[str, str, str, bool]]:
    """The keys of a screen, of the widget that has the focus and of the app: group, keys, sentence, and whether they
    do something now. The screen's own come first."""
    focused = [node for node in screen.focused.ancestors_with_self if node is not screen] if screen.focused else []
    nodes: list[DOMNode] = [screen, *(node for node in focused if node is not screen.app), screen.app]
    seen: set[tuple[str, str]] = set()
    for node in nodes:
        keys: dict[str, list[str]] = {}
        for binding in own_bindings(node):
            if binding.key_display == BOTH:
                binding = replace(binding, key_display=None)
            keys.setdefault(binding.action, []).append(screen.app.get_key_display(binding))
        for action, name in names_of(node).items():
            if action in keys and (chosen := screen.app._keymap.get(name)):
                keys[action] = [screen.app.get_key_display(Binding(key, action)) for key in chosen.split(",")]
        for group, sentences in sentences_of(node).items():
            for action, sentence in sentences.items():
                if action in keys and (group, sentence) not in seen:
                    seen.add((group, sentence))
                    shown = sorted(dict.fromkeys(keys[action]), key=len)
                    yield group, " ".join(shown[:2]), sentence, _does_something(node, action)


def own_bindings(node: DOMNode) -> Iterator[Binding]:
    """The bindings that classes of the cockpit declare. Those of Textual's widgets, such as scrolling, are known."""
    for each in type(node).__mro__:
        if each.__module__.startswith("cockpit"):
            yield from Binding.make_bindings(each.__dict__.get("BINDINGS", ()))


def sentences_of(node: DOMNode) -> dict[str, dict[str, str]]:
    for each in type(node).__mro__:
        if each.__name__ in HELP and each.__module__.startswith("cockpit"):
            return HELP[each.__name__]
    return {}


def _does_something(node: DOMNode, action: str) -> bool:
    name, _, _ = action.rpartition(".")[2].partition("(")
    return node.check_action(name, ()) is True


def _line(key: str, sentence: str, now: bool, width: int) -> list[Content]:
    """A key and its sentence, which goes on below itself. What does nothing now is dimmed."""
    style = "" if now else "dim"
    lines = Content(sentence).wrap(max(10, width - KEY_WIDTH - 2))
    head = Content.styled(f"{key:>{KEY_WIDTH}}  ", f"bold $accent {style}".strip())
    return [
        Content.assemble(head if not at else " " * (KEY_WIDTH + 2), (line.plain, style))
        for at, line in enumerate(lines)
    ]


def _paragraphs(text: str, width: int) -> list[Content]:
    """The text about a screen, a paragraph a sentence group, wrapped to the width; `names` in bold, without marks."""
    found: list[Content] = []
    for line in re.sub(r"(?<![.:])\n(?!\n)", " ", inspect.cleandoc(text)).splitlines():
        parts = line.split("`")
        whole = Content.assemble(*((part, "bold $accent" if at % 2 else "") for at, part in enumerate(parts)))
        found += whole.wrap(width)
    return found
