"""A dialog with the tokens of a text, each in the style of its probability, and the alternatives of one of them."""

from __future__ import annotations

import json

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.geometry import Region
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.token_scores import (
    LIKELY,
    RARE,
    UNLIKELY,
    ScoredText,
    ScoredToken,
    describe_scores,
    format_probability,
)
from cockpit.widgets.row_view import SHADE, write_token

PLAIN = "$text"
DIM = "$foreground-muted"
SURPRISE = "underline $text-warning"
STRONG = "bold underline $text-error"
ALTERNATIVES_HEIGHT = 8
"""Lines of the selected token, its alternatives and what separates them from the text."""
MORE = "…\n"
"""The line that stands for the tokens before a page, and for those after it."""
BAR = 20
"""Cells of the bar of a certain token."""
PAGE = 1000
"""Tokens that are on the screen together: what a key costs does not depend on the length of the text."""


class TokenDialog(ModalScreen[None]):
    DEFAULT_CSS = """
    TokenDialog { align: center middle; }
    TokenDialog > Vertical {
        width: 100; max-width: 96%; height: auto; max-height: 92%; border: round $accent; background: $surface;
        padding: 0 1;
    }
    TokenDialog .figures { height: auto; margin: 0 0 1 0; }
    TokenDialog VerticalScroll { height: auto; scrollbar-size-vertical: 1; }
    TokenDialog #tokens { height: auto; }
    TokenDialog #token { height: 7; margin: 1 0 0 0; border-top: solid $primary; text-wrap: nowrap;
        text-overflow: ellipsis; }
    """
    BINDINGS = [
        Binding("escape,q,enter", "dismiss(None)", "Close"),
        Binding("left,h", "move(-1)", "Back", show=False),
        Binding("right,l", "move(1)", "On", show=False),
        Binding("up,k", "move_line(-1)", "Up", show=False),
        Binding("down,j", "move_line(1)", "Down", show=False),
        Binding("home", "go(0)", "First", show=False),
        Binding("end", "go(-1)", "Last", show=False),
        Binding("n", "surprise(1)", "Next surprise", show=False),
        Binding("N", "surprise(-1)", "Previous surprise", show=False),
    ]

    def __init__(self, title: str, scores: ScoredText) -> None:
        super().__init__()
        self._title, self._scores = title, scores
        self.at = next(iter(scores.surprises), 0)
        """The selected token."""
        self._lines: dict[tuple[int, int], int] = {}
        """Width and token -> its line on its page."""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self._title)
            box.border_subtitle = tr("← → token · n N next surprise · Esc closes")
            origin = tr("as it wrote them") if self._scores.own else tr("as its tokenizer divides the text")
            facts = f"{describe_scores(self._scores)} · {origin}"
            yield Static(Content.assemble(facts, "\n", legend()), classes="figures")
            with VerticalScroll(can_focus=False):
                yield Static(id="tokens")
            yield Static(id="token")

    def on_mount(self) -> None:
        self.call_after_refresh(self._show)

    def on_resize(self, event: events.Resize) -> None:
        figures = 4 if event.size.width < 100 else 3
        room = int(event.size.height * 0.92) - 2 - figures - ALTERNATIVES_HEIGHT
        self.query_one(VerticalScroll).styles.max_height = max(2, room)
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        """Show the tokens with the selected one marked, and its alternatives."""
        start = self.at - self.at % PAGE
        pieces: list[tuple[str, str]] = [(MORE, DIM)] if start else []
        for at, token in enumerate(self._scores.tokens[start : start + PAGE], start):
            shade, mark = f" {SHADE}" if at % 2 else "", " reverse" if at == self.at else ""
            pieces.append((write_token(token.text), f"{style_of(token)}{shade}{mark}"))
        if start + PAGE < len(self._scores.tokens):
            pieces.append((f"\n{MORE}", DIM))
        self.query_one("#tokens", Static).update(Content.assemble(*pieces))
        self.query_one("#token", Static).update(self._describe())
        scroll, (_, line) = self.query_one(VerticalScroll), self._line_of(self.at)
        scroll.scroll_to_region(Region(0, line, 1, 1), animate=False)

    def _line_of(self, at: int) -> tuple[int, int]:
        """The page of a token, and its line there."""
        page, width = at // PAGE, max(1, self.query_one("#tokens", Static).content_size.width)
        if (width, at) not in self._lines:
            shown = self._scores.tokens[page * PAGE : at + 1]
            before = (MORE if page else "") + "".join(write_token(token.text) for token in shown)
            self._lines[width, at] = max(0, len(Content(before.rstrip("\n")).wrap(width)) - 1)
        return page, self._lines[width, at]

    def _describe(self) -> Content:
        if not self._scores.tokens:
            return Content("")
        token = self._scores.tokens[self.at]
        head = Content.assemble(
            (tr("token {at:,} of {tokens:,}  ", at=self.at + 1, tokens=len(self._scores.tokens)), DIM),
            (_quote(token.text), "bold"),
            f"  {format_probability(token.probability)}",
        )
        if token.logprob is None:
            return Content.assemble(head, "\n", (tr("nothing stands before it, so it has no probability"), DIM))
        lines = [head]
        for text, logprob in token.likeliest:
            lines.append(_alternative(ScoredToken(text, logprob), (text, logprob) == (token.text, token.logprob)))
        return Content("\n").join(lines)

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def action_move(self, by: int) -> None:
        self._select(self.at + by)

    def action_go(self, at: int) -> None:
        self._select(at if at >= 0 else len(self._scores.tokens) - 1)

    def action_move_line(self, by: int) -> None:
        """Go to a token in the next line, or in the previous one."""
        line, to = self._line_of(self.at), self.at
        while 0 <= to + by < len(self._scores.tokens) and self._line_of(to) == line:
            to += by
        self._select(to)

    def action_surprise(self, by: int) -> None:
        places = self._scores.surprises
        ahead = [at for at in places if (at > self.at if by > 0 else at < self.at)]
        if ahead:
            self._select(ahead[0] if by > 0 else ahead[-1])

    def _select(self, at: int) -> None:
        self.at = max(0, min(len(self._scores.tokens) - 1, at))
        self._show()


def legend() -> Content:
    return Content.assemble(
        (f"{tr('probability')}  ", DIM), (f"≥ {LIKELY:.0%}", DIM), "   ", (f"≥ {UNLIKELY:.0%}", PLAIN), "   ",
        (f"< {UNLIKELY:.0%}", SURPRISE), "   ", (f"< {RARE:.0%}", STRONG),
    )  # fmt: skip


def style_of(token: ScoredToken) -> str:
    """The style of a probability. Underlining and weight tell surprises apart without colour."""
    value = token.probability
    if value is None or value >= LIKELY:
        return DIM
    return PLAIN if value >= UNLIKELY else SURPRISE if value >= RARE else STRONG


def _alternative(token: ScoredToken, chosen: bool) -> Content:
    share = token.probability or 0.0
    bar = "█" * round(share * BAR)
    mark = "▸ " if chosen else "  "
    return Content.assemble(
        (mark, "$accent"), (f"{format_probability(share):>8}  ", "$text"), (f"{bar:<{BAR}}  ", "$primary"),
        (_quote(token.text), "bold" if chosen else ""),
    )  # fmt: skip


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\ufffd", "◌")
