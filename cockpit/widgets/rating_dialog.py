"""Two small panels over the chat: a rating by hand, and what all votes and ratings come to."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.state.vote_stats import duels, means, told_duel, told_mean
from engine.protocol.messages import Judgement

WORDS = ("useless", "poor", "fair", "good", "excellent")


class Rating(ModalScreen[int | None]):
    """Dismissed with 1 to 5, or None."""

    DEFAULT_CSS = """
    Rating { align: center middle; }
    Rating > Vertical { width: 34; height: auto; border: round $accent; background: $surface; padding: 0 1; }
    """

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title, box.border_subtitle = "How good is this reply?", "1–5 · Esc leaves"
            lines = [
                Content.assemble((f" {number} ", "bold $accent"), f" {'★' * number}{'☆' * (5 - number)}  {word}")
                for number, word in enumerate(WORDS, 1)
            ]
            yield Static(Content("\n").join(lines))

    def on_key(self, event: events.Key) -> None:
        event.stop()
        if event.character and event.character in "12345":
            self.dismiss(int(event.character))
        elif event.key == "escape":
            self.dismiss(None)


class TallySheet(ModalScreen[None]):
    """All judgements of the targets that one talks to, and of the other steps of their runs."""

    DEFAULT_CSS = """
    TallySheet { align: center middle; }
    TallySheet > VerticalScroll { width: 96%; max-width: 110; height: auto; max-height: 90%; border: round $accent; background: $surface; padding: 0 1; }
    """
    BINDINGS = [("escape,q,t", "dismiss", "Close")]

    def __init__(self, judgements: Sequence[Judgement]) -> None:
        super().__init__()
        self._judgements = judgements

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title, box.border_subtitle = "Votes and ratings", "Esc closes"
            yield Static(told(self._judgements))


def told(judgements: Sequence[Judgement]) -> Content:
    """Duels, then ratings; how to begin where there are none."""
    blocks = []
    if found := duels(judgements):
        lines = [Content(told_duel(duel)) for duel in found]
        blocks.append(Content("\n").join([Content.styled("Blind votes", "bold $accent"), *lines]))
    if rated := means(judgements):
        rows = [Content(told_mean(mean)) for mean in rated]
        blocks.append(Content("\n").join([Content.styled("Ratings", "bold $accent"), *rows]))
    if not blocks:
        return Content(
            "No vote and no rating yet.\n\nVotes: two targets side by side (ctrl+b), then b hides their names; < > = - choose.\n"
            "Ratings: s on a reply."
        )
    return Content("\n\n").join(blocks)
