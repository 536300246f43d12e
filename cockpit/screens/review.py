"""Accepting and dropping expanded rows on the data screen, one key a row."""

from __future__ import annotations

from textual import work
from textual.binding import Binding

from cockpit.language.translate import tr
from cockpit.screens.row_browser import EXPANDED, UNDECIDED, RowBrowserScreen

REVIEW_ACTIONS = frozenset({"decide", "take_back", "undecided"})
"""Actions on expanded rows. Other parts do not offer them; with `--readonly` those that change anything are not
offered."""


class ReviewScreen(RowBrowserScreen):
    """Adds decisions about expanded rows."""

    BINDINGS = [
        Binding("a", "decide('accepted')", "Accept"),
        Binding("x", "decide('dropped')", "Drop"),
        Binding("u", "take_back", "Take back"),
        Binding("f", "undecided", "Undecided only"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._previous: list[tuple[int, str]] = []
        """Rows with a decision, each with the decision before it, so that it can be taken back."""
        self._deciding = False

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action not in REVIEW_ACTIONS:
            return super().check_action(action, parameters)
        if self.part != EXPANDED:
            return False
        return action == "undecided" or not self.app.readonly

    def forget_decisions(self) -> None:
        """Other data is open: earlier decisions can no longer be taken back."""
        self.changed = False
        self._previous.clear()

    @work(group="decide")
    async def action_decide(self, decision: str) -> None:
        """Decide about the current row, and go to the next."""
        row = self.rows.get((self.part, self.index))
        if row is None or "at" not in row or self._deciding:
            return  # a key pressed while the last decision is still being stored was not meant for the next, unseen row
        index = await self._decide(row["at"], decision)
        if index is None:
            return
        counts = self.summary["decisions"]
        if not counts["undecided"]:
            self.notify(
                tr(
                    "{accepted:,} accepted, {dropped:,} dropped", accepted=counts["accepted"], dropped=counts["dropped"]
                ),
                title=tr("Every row is decided"),
            )
        self.action_go_to(min(self.index + 1, max(self.totals[self.part] - 1, 0)))

    @work(group="decide")
    async def action_take_back(self) -> None:
        """Undo the last decision and go to its row."""
        if self._deciding:
            return
        if not self._previous:
            self.notify(tr("Nothing to take back: a and x change the decision of the current row"), severity="warning")
            return
        at, before = self._previous.pop()
        index = await self._decide(at, before, undoable=False)
        if index is not None:
            self.action_go_to(index)

    @work(group="find", exclusive=True)
    async def action_undecided(self) -> None:
        """Show only rows without a decision, or all again."""
        words = self.queries.get(EXPANDED, "").split()
        others = [word for word in words if word != UNDECIDED]
        await self.search(" ".join(others if len(others) < len(words) else [*words, UNDECIDED]))

    async def _decide(self, at: int, decision: str, undoable: bool = True) -> int | None:
        """Store a decision. Returns the row's index among the visible rows, the current index when it is not visible,
        and None when nothing was stored."""
        self._deciding = True
        try:
            answer = await self.ask("decide", {"at": at, "decision": decision})
        finally:
            self._deciding = False
        if answer is None:
            return None
        if undoable:
            self._previous.append((at, answer["before"]))
        self.changed = True
        self.summary["decisions"] = answer["decisions"]
        for row in self.rows.values():
            if row.get("at") == at:
                row["decision"] = decision
        return self.index if answer["index"] is None else int(answer["index"])
