"""What was said, a turn a row: questions, and answers of one target or of several side by side. One turn is selected, for the keys."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from cockpit.state.chat_tree import Tree, Turn
from cockpit.state.reply_format import alike
from cockpit.widgets.reply import TICK, Reply
from engine.protocol.messages import Problem

TURNS = 40
"""Turns kept on the screen; the model still gets the whole conversation."""
LINES = 4
"""Rows that a key moves a turn that is taller than the screen."""
SIDES = ("left", "right")
LETTERS = "ABCD"

Place = tuple[int, int]
"""Which of how many siblings."""


class Question(Static):
    """A user's turn, as typed."""

    DEFAULT_CSS = """
    Question { height: auto; margin: 1 0 0 0; padding: 0 1; border-left: solid $accent; background: $panel; }
    """

    def __init__(self, turn: Turn, place: Place) -> None:
        mark = f"\n{branch(place)}" if place[1] > 1 else ""
        super().__init__(Content.assemble(turn.said, (mark, "$foreground-muted")))
        self.turn, self.place = turn, place


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
        place: Place = (1, 1),
    ) -> None:
        """`names` of the targets; `order` of the columns as they are shown. With `blind` nothing tells one from the other until a vote."""
        super().__init__(classes="-several" if len(order) > 1 else "")
        self.names, self.turn, self.place, self.blind = names, turn, place, blind
        self.replies = [Reply(column, turn.replies[column] if turn else None) for column in order]
        self.marked = self._alike(turn) if turn else None
        """Whether differences are marked; at first where there is much in common. None before the replies are whole."""
        self._mark()

    def compose(self) -> ComposeResult:
        yield from self.replies

    def on_mount(self) -> None:
        self.call_after_refresh(self._label)

    @property
    def hidden(self) -> bool:
        """Whether a vote is still to come."""
        return self.blind and not (self.turn and self.turn.vote)

    def of(self, column: int) -> Reply:
        return next(reply for reply in self.replies if reply.column == column)

    async def settle(self, turn: Turn, place: Place) -> None:
        """All replies are whole, and this is the turn that they are; or it has got a vote or a rating."""
        self.turn, self.place = turn, place
        for reply in self.replies:
            reply.answered, reply.text = turn.replies[reply.column], turn.replies[reply.column].text
        if self.marked is None:
            self.marked = self._alike(turn)
        self._mark()
        await self.look()

    async def look(self) -> None:
        for reply in self.replies:
            await reply.look()
        self._label()

    @staticmethod
    def _alike(turn: Turn) -> bool:
        texts = [reply.text for reply in turn.replies]
        return len({*texts}) > 1 and alike(texts)

    def _mark(self) -> None:
        """What each reply is compared with: the first, and of two the first with the second."""
        for at, reply in enumerate(self.replies):
            reply.hidden = self.hidden
            reply.note = branch(self.place) if not at and self.place[1] > 1 else ""
            other = 0 if at else 1 if len(self.replies) == 2 else None
            reply.lined = bool(self.marked)
            shown = reply.lined and other is not None
            reply.against = self.replies[other].text if shown and other is not None else None

    async def mark(self, marked: bool) -> None:
        self.marked = marked
        self._mark()
        await self.look()

    def front(self, at: int) -> None:
        """Which reply is seen where there is room for one."""
        for place, reply in enumerate(self.replies):
            reply.set_class(place == min(at, len(self.replies) - 1), "-front")

    def _label(self) -> None:
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


class Trouble(Static):
    """A problem as a panel one can read."""

    DEFAULT_CSS = (
        "Trouble { height: auto; margin: 1 0 0 0; padding: 0 1; border: round $error; border-title-color: $error; }"
    )

    def __init__(self, problem: Problem) -> None:
        hint = f"→ {problem.hint}" if problem.hint else ""
        super().__init__("\n".join(filter(None, (problem.cause, hint))) or " ", markup=False)
        self.border_title = f"✗ {problem.title}"


def branch(place: Place) -> str:
    """Which of its siblings a turn is."""
    return f"{place[0]}/{place[1]}"


Row = Question | Answer


class Conversation(VerticalScroll):
    """The turns of a tree's way. Stays at the end unless one scrolls up."""

    DEFAULT_CSS = """
    Conversation { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    Conversation:focus-within .-selected { border-left: thick $accent; }
    Conversation .note { height: auto; color: $text-muted; padding: 1 1 0 1; }
    """
    BINDINGS = [
        Binding("down,j", "step(1)", "Next turn", show=False),
        Binding("up,k", "step(-1)", "Turn before", show=False),
        Binding("left,h", "column(-1)", "Reply to the left", show=False),
        Binding("right,l", "column(1)", "Reply to the right", show=False),
        Binding("less_than_sign", "vote('left')", "Left is better", key_display="<"),
        Binding("greater_than_sign", "vote('right')", "Right", key_display=">"),
        Binding("equals_sign", "vote('tie')", "Tie", key_display="="),
        Binding("minus", "vote('both bad')", "Both bad", key_display="-"),
        Binding("left_square_bracket", "branch(-1)", "Branch", key_display="[ ]"),
        Binding("right_square_bracket", "branch(1)", "Next branch", show=False, key_display="]"),
        Binding("e", "edit", "Edit"),
        Binding("r", "again", "Again"),
        Binding("v", "raw", "Raw"),
        Binding("d", "differences", "Differences"),
        Binding("s", "rate", "Rate"),
        Binding("enter,space", "open", "Fold", key_display="Enter"),
        Binding("c", "copy", "Copy"),
    ]

    class Act(Message):
        """A key asks for something to be done with a turn: `edit`, `again`, `branch`, `rate`, `vote`."""

        def __init__(self, what: str, turn: Turn, column: int = 0, by: int = 0, word: str = "") -> None:
            super().__init__()
            self.what, self.turn, self.column, self.by, self.word = what, turn, column, by, word

    class Moved(Message):
        """Another turn or reply is selected: other keys may count."""

    def __init__(self) -> None:
        super().__init__()
        self.selected: Row | None = None
        self.column = 0
        """Which reply of an answer is meant, counted from the left."""

    def on_mount(self) -> None:
        self.anchor()
        self.set_interval(TICK, self._flush)

    async def _flush(self) -> None:
        for reply in self.query(Reply):
            if reply.is_mounted:
                await reply.flush()

    # ── filling ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def rows(self) -> list[Row]:
        return [child for child in self.children if isinstance(child, (Question, Answer))]

    async def clear(self, note: str | Content) -> None:
        """Nothing but a note, which says what to do next."""
        self.selected = None
        await self.remove_children()
        await self.mount(Static(note, classes="note"))

    async def show(self, tree: Tree, at: int | None = None, until: int | None = None) -> None:
        """The way of the tree, or what led to the turn `until`; what stands there already stays. The turn `at` is selected, else the last."""
        whole = tree.way if until is None else tree.line(until)
        way = whole[-TURNS:]
        rows, same = self.rows, 0
        for row, turn in zip(rows, way, strict=False):
            if row.turn is None or row.turn.id != turn.id or row.place != tree.place(turn.id):
                break
            same += 1
        begin = self.children.index(rows[same - 1]) + 1 if same else 0
        with self.app.batch_update():
            await self.remove_children(list(self.children)[begin:])
            if not same and len(whole) > TURNS:
                await self.mount(_cut())
            for turn in way[same:]:
                await self.mount(self._row(turn, tree))
        rows = self.rows
        chosen = next((row for row in rows if row.turn is not None and row.turn.id == at), None)
        self._select(chosen or (rows[-1] if rows else None))
        if chosen is None:
            self.anchor()
        else:
            self.call_after_refresh(self.scroll_to_widget, chosen, animate=False)

    def _row(self, turn: Turn, tree: Tree) -> Row:
        place = tree.place(turn.id)
        if not turn.answer:
            return Question(turn, place)
        order = turn.blind or range(len(turn.replies))
        answer = Answer([reply.target for reply in turn.replies], order, bool(turn.blind), turn, place)
        answer.front(self.column)
        return answer

    async def begin(self, names: Sequence[str], order: Sequence[int], blind: bool) -> Answer:
        """An answer that is about to be written, at the end."""
        answer = Answer(names, order, blind)
        answer.front(self.column)
        await self._add(answer)
        self._select(answer)
        return answer

    async def trouble(self, problem: Problem) -> None:
        await self._add(Trouble(problem))

    async def _add(self, row: Answer | Trouble) -> None:
        await self.query(".note").remove()
        await self.mount(row)
        if gone := list(self.children)[:-TURNS]:
            await self.remove_children(gone)
            await self.mount(_cut(), before=0)
        self.anchor()

    # ── selecting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _select(self, row: Row | None) -> None:
        self.selected = row
        for widget in self.query(".-selected"):
            widget.remove_class("-selected")
        if isinstance(row, Answer):
            row.front(self.column)
            row.replies[min(self.column, len(row.replies) - 1)].add_class("-selected")
        elif row is not None:
            row.add_class("-selected")
        self.post_message(self.Moved())

    @property
    def reply(self) -> Reply | None:
        """The selected reply."""
        if not isinstance(self.selected, Answer):
            return None
        return self.selected.replies[min(self.column, len(self.selected.replies) - 1)]

    def action_step(self, by: int) -> None:
        """To the next turn; within one that is taller than the screen some lines further."""
        rows, row = self.rows, self.selected
        if row is None or row not in rows:
            return
        seen, here = self.scrollable_content_region, row.region
        if here.bottom > seen.bottom if by > 0 else here.y < seen.y:
            self.scroll_relative(y=by * LINES, animate=False)
            return
        to = rows.index(row) + by
        if 0 <= to < len(rows):
            self._select(rows[to])
            self.scroll_to_widget(rows[to], animate=False, top=by > 0 and rows[to].region.height > seen.height)
        else:
            self.scroll_relative(y=by * LINES, animate=False)

    def action_column(self, by: int) -> None:
        most = max((len(row.replies) for row in self.rows if isinstance(row, Answer)), default=1)
        self.column = max(0, min(most - 1, self.column + by))
        for row in self.rows:
            if isinstance(row, Answer):
                row.front(self.column)
        self._select(self.selected)

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing with what is selected are not offered."""
        row = self.selected
        whole = isinstance(row, Answer) and row.turn is not None
        several = isinstance(row, Answer) and len(row.replies) > 1
        match action:
            case "vote":
                return whole and isinstance(row, Answer) and row.hidden
            case "branch":
                return row is not None and row.place[1] > 1
            case "column":
                return several
            case "differences":
                return whole and several
            case "edit":
                return isinstance(row, Question)
            case "again" | "copy":
                return isinstance(row, Question) or whole
            case "raw":
                return whole
            case "rate":
                return whole and isinstance(row, Answer) and not row.hidden
            case "open":
                return bool(self.reply is not None and whole and self._foldable())
        return True

    def _foldable(self) -> list[Static]:
        reply = self.reply
        return [widget for widget in reply.query("JsonTree, CollapsibleTitle") if widget.focusable] if reply else []  # type: ignore[misc]

    def _act(self, what: str, by: int = 0, word: str = "") -> None:
        row = self.selected
        if row is not None and row.turn is not None:
            column = self.reply.column if self.reply else 0
            self.post_message(self.Act(what, row.turn, column, by, word))

    def action_edit(self) -> None:
        self._act("edit")

    def action_again(self) -> None:
        self._act("again")

    def action_branch(self, by: int) -> None:
        self._act("branch", by=by)

    def action_rate(self) -> None:
        self._act("rate")

    def action_vote(self, word: str) -> None:
        self._act("vote", word=word)

    async def action_raw(self) -> None:
        if isinstance(self.selected, Answer):
            raw = not self.selected.replies[0].raw
            for reply in self.selected.replies:
                reply.raw = raw
            await self.selected.look()

    async def action_differences(self) -> None:
        if isinstance(self.selected, Answer):
            await self.selected.mark(not self.selected.marked)

    def action_open(self) -> None:
        """Go into what folds: its own keys fold it, Esc comes back."""
        if found := self._foldable():
            found[0].focus()

    def action_copy(self) -> None:
        text = self.reply.text if self.reply else self.selected.turn.said if isinstance(self.selected, Question) else ""
        self.app.copy_to_clipboard(text)
        self.notify(f"{len(text):,} characters", title="Copied")


def _cut() -> Static:
    return Static("earlier turns are no longer shown; the model still knows them", classes="note")
