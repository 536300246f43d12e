"""A conversation, one turn a row. One turn is selected, and the keys act on it."""

from __future__ import annotations

from collections.abc import Sequence

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from cockpit.content import Content
from cockpit.keymap import named
from cockpit.language.translate import tr
from cockpit.state.chat_tree import ChatTree, Turn
from cockpit.widgets.chat_turns import Answer, ProblemPanel, Question
from cockpit.widgets.reply import TICK, Reply
from engine.protocol.messages import Problem

MAX_TURNS = 40
"""Turns on the screen; the model still gets the whole conversation."""
LINES = 4
"""Rows that a key scrolls within a turn that is taller than the screen."""

Row = Question | Answer


@named
class Conversation(VerticalScroll):
    """The turns of a tree's path. Stays at the end unless the user scrolls up."""

    DEFAULT_CSS = """
    Conversation { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    Conversation:focus-within .-selected { border-left: thick $accent; }
    Conversation .note { height: auto; color: $text-muted; padding: 1 1 0 1; }
    """
    BINDINGS = [
        Binding("down,j", "step(1)", "Next turn", show=False),
        Binding("up,k", "step(-1)", "Previous turn", show=False),
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
        Binding("p", "tokens", "Tokens"),
        Binding("a", "case", "Case"),
        Binding("enter,space", "open", "Fold", key_display="Enter"),
        Binding("c", "copy", "Copy"),
    ]

    class Act(Message):
        """A key asks for an action on a turn: `edit`, `again`, `branch`, `rate`, `vote`, `tokens`,
        `case`."""

        def __init__(self, what: str, turn: Turn, column: int = 0, by: int = 0, word: str = "") -> None:
            super().__init__()
            self.what, self.turn, self.column, self.by, self.word = what, turn, column, by, word

    class Moved(Message):
        """Another turn or reply is selected, so other keys may apply."""

    def __init__(self) -> None:
        super().__init__()
        self.selected: Row | None = None
        self.column = 0
        """The selected reply of an answer, counted from the left."""

    def on_mount(self) -> None:
        self.anchor()
        self.set_interval(TICK, self._flush)

    async def _flush(self) -> None:
        for reply in self.query(Reply):
            if reply.is_mounted:
                await reply.flush()

    # ── content ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def rows(self) -> list[Row]:
        return [child for child in self.children if isinstance(child, (Question, Answer))]

    async def clear(self, note: str | Content) -> None:
        """Show nothing but a note, which says what to do next."""
        self.selected = None
        await self.remove_children()
        await self.mount(Static(note, classes="note"))

    async def show(self, tree: ChatTree, at: int | None = None, until: int | None = None) -> None:
        """Show the tree's path, or the path to the turn `until`. Rows that are on the screen already stay.

        Selects the turn `at`, else the last one.
        """
        whole = tree.path if until is None else tree.path_to(until)
        path = whole[-MAX_TURNS:]
        rows, same = self.rows, 0
        for row, turn in zip(rows, path, strict=False):
            if row.turn is None or row.turn.id != turn.id or row.position != tree.position(turn.id):
                break
            same += 1
        begin = self.children.index(rows[same - 1]) + 1 if same else 0
        with self.app.batch_update():
            await self.remove_children(list(self.children)[begin:])
            if not same and len(whole) > MAX_TURNS:
                await self.mount(_earlier_turns_note())
            for turn in path[same:]:
                await self.mount(self._row(turn, tree))
        rows = self.rows
        chosen = next((row for row in rows if row.turn is not None and row.turn.id == at), None)
        self._select(chosen or (rows[-1] if rows else None))
        if chosen is None:
            self.anchor()
        else:
            self.call_after_refresh(self.scroll_to_widget, chosen, animate=False)

    def _row(self, turn: Turn, tree: ChatTree) -> Row:
        position = tree.position(turn.id)
        if not turn.is_answer:
            return Question(turn, position)
        order = turn.blind or range(len(turn.replies))
        answer = Answer([reply.target for reply in turn.replies], order, bool(turn.blind), turn, position)
        answer.bring_to_front(self.column)
        return answer

    async def begin(self, names: Sequence[str], order: Sequence[int], blind: bool) -> Answer:
        """Add an answer that is about to be written."""
        answer = Answer(names, order, blind)
        answer.bring_to_front(self.column)
        await self._add(answer)
        self._select(answer)
        return answer

    async def show_problem(self, problem: Problem) -> None:
        await self._add(ProblemPanel(problem))

    async def _add(self, row: Answer | ProblemPanel) -> None:
        await self.query(".note").remove()
        await self.mount(row)
        if gone := list(self.children)[:-MAX_TURNS]:
            await self.remove_children(gone)
            await self.mount(_earlier_turns_note(), before=0)
        self.anchor()

    # ── selection ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _select(self, row: Row | None) -> None:
        self.selected = row
        for widget in self.query(".-selected"):
            widget.remove_class("-selected")
        if isinstance(row, Answer):
            row.bring_to_front(self.column)
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
        """Select the next turn. Within a turn that is taller than the screen, scroll some lines."""
        rows, row = self.rows, self.selected
        if row is None or row not in rows:
            return
        visible, here = self.scrollable_content_region, row.region
        if here.bottom > visible.bottom if by > 0 else here.y < visible.y:
            self.scroll_relative(y=by * LINES, animate=False)
            return
        to = rows.index(row) + by
        if 0 <= to < len(rows):
            self._select(rows[to])
            self.scroll_to_widget(rows[to], animate=False, top=by > 0 and rows[to].region.height > visible.height)
        else:
            self.scroll_relative(y=by * LINES, animate=False)

    def action_column(self, by: int) -> None:
        columns = max((len(row.replies) for row in self.rows if isinstance(row, Answer)), default=1)
        self.column = max(0, min(columns - 1, self.column + by))
        for row in self.rows:
            if isinstance(row, Answer):
                row.bring_to_front(self.column)
        self._select(self.selected)

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would have no effect on the selected turn are not offered."""
        row = self.selected
        complete = isinstance(row, Answer) and row.turn is not None
        several = isinstance(row, Answer) and len(row.replies) > 1
        match action:
            case "vote":
                return complete and isinstance(row, Answer) and row.hidden
            case "branch":
                return row is not None and row.position[1] > 1
            case "column":
                return several
            case "differences":
                return complete and several
            case "edit":
                return isinstance(row, Question)
            case "again" | "copy":
                return isinstance(row, Question) or complete
            case "raw":
                return complete
            case "case" | "rate" if getattr(self.app, "readonly", False):
                return False
            case "rate":
                return complete and isinstance(row, Answer) and not row.hidden
            case "tokens" | "case":
                return complete and isinstance(row, Answer) and not row.hidden and self._has_text()
            case "open":
                return bool(self.reply is not None and complete and self._foldable())
        return True

    def _has_text(self) -> bool:
        content = self.reply.content if self.reply else None
        return content is not None and bool(content.text.strip()) and "problem" not in content.facts

    def _foldable(self) -> list[Widget]:
        found = self.reply.query("JsonTree, CollapsibleTitle") if self.reply else ()
        return [widget for widget in found if widget.focusable]

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

    def action_tokens(self) -> None:
        self._act("tokens")

    def action_case(self) -> None:
        self._act("case")

    def action_vote(self, word: str) -> None:
        self._act("vote", word=word)

    async def action_raw(self) -> None:
        """Show the replies' raw text, or stop showing it."""
        if isinstance(self.selected, Answer):
            raw = not self.selected.replies[0].raw
            for reply in self.selected.replies:
                reply.raw = raw
            await self.selected.redraw()

    async def action_differences(self) -> None:
        if isinstance(self.selected, Answer):
            await self.selected.mark_differences(not self.selected.marked)

    def action_open(self) -> None:
        """Focus the part of the reply that folds: its own keys fold it, Esc comes back."""
        if found := self._foldable():
            found[0].focus()

    def action_copy(self) -> None:
        text = self.reply.text if self.reply else self.selected.turn.text if isinstance(self.selected, Question) else ""
        self.app.copy_to_clipboard(text)
        self.notify(tr("{text:,} characters", text=len(text)), title=tr("Copied"))


def _earlier_turns_note() -> Static:
    return Static(tr("earlier turns are not shown any more; the model still gets them"), classes="note")
