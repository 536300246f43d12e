"""The rows of a conversation: questions, answers of one target or of several side by side, and problems."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr_engine
from cockpit.state.chat_tree import Turn
from cockpit.state.text_diff import are_similar
from cockpit.widgets.reply import Reply
from cockpit.widgets.tool_views import show_question
from engine.protocol.messages import Problem

SIDES = ("left", "right")
LETTERS = "ABCD"

Position = tuple[int, int]
"""A turn's number among its siblings, and how many siblings there are."""


class Question(Static):
    """A user's turn, as typed."""

    DEFAULT_CSS = """
    Question { height: auto; margin: 1 0 0 0; padding: 0 1; border-left: solid $accent; background: $panel; }
    """

    def __init__(self, turn: Turn, position: Position) -> None:
        mark = f"\n{_format_position(position)}" if position[1] > 1 else ""
        super().__init__(Content.assemble(show_question(turn.text), (mark, "$foreground-muted")))
        self.turn, self.position = turn, position


class Answer(Horizontal):
    """The replies to one question, from left to right. `turn` is None while they are being written."""

    DEFAULT_CSS = """
    Answer { height: auto; }
    Answer.-several > Reply { padding: 0 1 0 0; }
    """

    def __init__(
        self,
        names: Sequence[str],
        order: Sequence[int],
        blind: bool,
        turn: Turn | None = None,
        position: Position = (1, 1),
    ) -> None:
        """`names` of the targets; `order` of the columns on the screen. `blind` hides the names until there is a
        vote."""
        super().__init__(classes="-several" if len(order) > 1 else "")
        self.names, self.turn, self.position, self.blind = names, turn, position, blind
        self.replies = [Reply(column, turn.replies[column] if turn else None) for column in order]
        self.marked = _have_similar_replies(turn) if turn else None
        """Whether differences are marked; initially when the replies are similar. None before the replies are
        complete."""
        self._update_replies()

    def compose(self) -> ComposeResult:
        yield from self.replies

    def on_mount(self) -> None:
        self.call_after_refresh(self._show_names)

    @property
    def hidden(self) -> bool:
        """Whether the names are hidden because the vote is still to come."""
        return self.blind and not (self.turn and self.turn.vote)

    def reply_of(self, column: int) -> Reply:
        return next(reply for reply in self.replies if reply.column == column)

    async def set_turn(self, turn: Turn, position: Position) -> None:
        """Show this turn: its replies are complete, or it has got a vote or a rating."""
        self.turn, self.position = turn, position
        for reply in self.replies:
            reply.content, reply.text = turn.replies[reply.column], turn.replies[reply.column].text
        if self.marked is None:
            self.marked = _have_similar_replies(turn)
        self._update_replies()
        await self.redraw()

    async def redraw(self) -> None:
        for reply in self.replies:
            await reply.redraw()
        self._show_names()

    def _update_replies(self) -> None:
        """Tell each reply what it is compared with: the first reply; of two, the first is compared with the second."""
        for at, reply in enumerate(self.replies):
            reply.hidden = self.hidden
            reply.note = _format_position(self.position) if not at and self.position[1] > 1 else ""
            other = 0 if at else 1 if len(self.replies) == 2 else None
            reply.plain = bool(self.marked)
            reply.against = self.replies[other].text if reply.plain and other is not None else None

    async def mark_differences(self, marked: bool) -> None:
        self.marked = marked
        self._update_replies()
        await self.redraw()

    def bring_to_front(self, at: int) -> None:
        """Choose the reply that is visible where there is room for only one."""
        for place, reply in enumerate(self.replies):
            reply.set_class(place == min(at, len(self.replies) - 1), "-front")

    def _show_names(self) -> None:
        if len(self.replies) < 2 or not self.is_mounted:
            return
        narrow = self.screen.has_class("-narrow")
        titles = [self._title(at) for at in range(len(self.replies))]
        for at, reply in enumerate(self.replies):
            line = reply.query_one(".name", Static)
            line.display = True
            own = Content.styled(titles[at], "bold $accent")
            if narrow:
                parts = [
                    own if place == at else Content.styled(each, "$foreground-muted")
                    for place, each in enumerate(titles)
                ]
                line.update(Content.assemble(Content("  │  ").join(parts), ("   ← →", "$foreground-muted")))
            else:
                line.update(own)

    def _title(self, at: int) -> str:
        if self.hidden:
            return SIDES[at]
        column = self.replies[at].column
        name = self.turn.replies[column].target if self.turn else self.names[column]
        won = self.turn is not None and self.turn.vote == SIDES[at] if self.blind else False
        return f"{LETTERS[column]} {name}{' ✓' if won else ''}"


class ProblemPanel(Static):
    """A problem in a frame: title, cause and hint."""

    DEFAULT_CSS = """
    ProblemPanel { height: auto; margin: 1 0 0 0; padding: 0 1; border: round $error; border-title-color: $error; }
    """

    def __init__(self, problem: Problem) -> None:
        hint = f"→ {tr_engine(problem.hint)}" if problem.hint else ""
        super().__init__(Content("\n".join(filter(None, (tr_engine(problem.cause), hint))) or " "))
        self.border_title = Content(f"✗ {tr_engine(problem.title)}")


def _have_similar_replies(turn: Turn) -> bool:
    """Whether the replies differ, but have enough in common for marked differences to be useful."""
    texts = [reply.text for reply in turn.replies]
    return len({*texts}) > 1 and are_similar(texts)


def _format_position(position: Position) -> str:
    return f"{position[0]}/{position[1]}"
