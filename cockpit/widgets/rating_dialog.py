"""Two dialogs of the chat: one to rate a reply, and one with the statistics of all votes and ratings."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.vote_stats import count_votes, format_rating, format_votes, mean_ratings
from engine.protocol.messages import Judgement

WORDS = ("useless", "poor", "fair", "good", "excellent")


class RatingDialog(ModalScreen[int | None]):
    """Dismissed with 1 to 5, or None."""

    DEFAULT_CSS = """
    RatingDialog { align: center middle; }
    RatingDialog > Vertical { width: 34; height: auto; border: round $accent; background: $surface; padding: 0 1; }
    """

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title, box.border_subtitle = tr("How good is this reply?"), tr("1–5 · Esc cancels")
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


class VotesDialog(ModalScreen[None]):
    """All judgements of the current targets, and of the other steps of their runs."""

    DEFAULT_CSS = """
    VotesDialog { align: center middle; }
    VotesDialog > VerticalScroll {
        width: 96%; max-width: 110; height: auto; max-height: 90%; border: round $accent; background: $surface; padding:
        0 1;
    }
    """
    BINDINGS = [("escape,q,t", "dismiss", "Close")]

    def __init__(self, judgements: Sequence[Judgement]) -> None:
        super().__init__()
        self._judgements = judgements

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title, box.border_subtitle = tr("Votes and ratings"), tr("Esc closes")
            yield Static(format_judgements(self._judgements))


def format_judgements(judgements: Sequence[Judgement]) -> Content:
    """Votes, then ratings; without any, how to give them."""
    blocks = []
    if pairs := count_votes(judgements):
        lines = [Content(format_votes(pair)) for pair in pairs]
        blocks.append(Content("\n").join([Content.styled(tr("Blind votes"), "bold $accent"), *lines]))
    if ratings := mean_ratings(judgements):
        rows = [Content(format_rating(rating)) for rating in ratings]
        blocks.append(Content("\n").join([Content.styled("Ratings", "bold $accent"), *rows]))
    if not blocks:
        return Content(
            tr(
                "No votes and no ratings yet.\n"
                "\n"
                "Votes: set two targets side by side (ctrl+b); b hides their names; < > = - vote.\n"
                "Ratings: press s on a reply."
            )
        )
    return Content("\n\n").join(blocks)
