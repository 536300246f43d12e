"""Accepting and dropping expanded rows, for the data screen: one key a row."""

from __future__ import annotations

from typing import Any

from textual import work
from textual.binding import Binding

from cockpit.screens.base import CockpitScreen

EXPANDED = "expanded"
"""The part of rows that an expansion made."""
UNDECIDED = "is:undecided"
"""The condition that narrows to rows which nobody has decided about."""
DECIDING = frozenset({"decide", "take_back", "undecided"})
"""Actions on expanded rows: elsewhere they are not offered, `--readonly` greys those out that change anything."""


class DecidingScreen(CockpitScreen):
    """Subclasses browse parts of rows, of which one may be the expanded ones."""

    BINDINGS = [
        Binding("a", "decide('accepted')", "Accept"),
        Binding("x", "decide('dropped')", "Drop"),
        Binding("u", "take_back", "Take back"),
        Binding("f", "undecided", "Undecided only"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.summary: dict[str, Any] = {}
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        self.part, self.index = "train", 0
        self.totals: dict[str, int] = {}
        """Rows of each part, or of what it is narrowed to."""
        self.queries: dict[str, str] = {}
        """What each part is narrowed to."""
        self.changed = False
        """Decisions were taken since the sources were read."""
        self._before: list[tuple[int, str]] = []
        """Rows decided about, and what was decided before, to be taken back."""
        self._deciding = False

    async def ask(self, question: str, arguments: dict[str, Any]) -> Any:
        """The worker's answer, or None after showing why there is none."""
        raise NotImplementedError

    def action_go_to(self, index: int) -> None:
        raise NotImplementedError

    async def narrow(self, query: str) -> None:
        """Show the rows of this part that fit."""
        raise NotImplementedError

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action not in DECIDING:
            return True
        if self.part != EXPANDED:
            return False
        return None if self.app.readonly and action != "undecided" else True

    def forget_decisions(self) -> None:
        """Other data is open: nothing of what was decided here can be taken back."""
        self.changed = False
        self._before.clear()

    @work(group="decide")
    async def action_decide(self, decision: str) -> None:
        """Decide about the row that is shown, and go on to the next."""
        row = self.rows.get((self.part, self.index))
        if row is None or "at" not in row or self._deciding:
            return  # a key that comes while the last one is still at work was not meant for the next row, unseen
        index = await self._decide(row["at"], decision)
        if index is None:
            return
        counts = self.summary["decisions"]
        if not counts["undecided"]:
            self.notify(f"{counts['accepted']:,} accepted, {counts['dropped']:,} dropped", title="Every row is decided")
        self.action_go_to(min(self.index + 1, max(self.totals[self.part] - 1, 0)))

    @work(group="decide")
    async def action_take_back(self) -> None:
        """What was decided last holds no more; its row is shown."""
        if self._deciding:
            return
        if not self._before:
            self.notify("Nothing to take back: a and x decide anew about the row that is shown", severity="warning")
            return
        at, before = self._before.pop()
        index = await self._decide(at, before, again=False)
        if index is not None:
            self.action_go_to(index)

    @work(group="find", exclusive=True)
    async def action_undecided(self) -> None:
        """Only rows that nobody has decided about, and back to all."""
        words = self.queries.get(EXPANDED, "").split()
        kept = [word for word in words if word != UNDECIDED]
        await self.narrow(" ".join(kept if len(kept) < len(words) else [*words, UNDECIDED]))

    async def _decide(self, at: int, decision: str, again: bool = True) -> int | None:
        """Returns where the row is shown, the present place where it is not; None when nothing was decided."""
        self._deciding = True
        try:
            told = await self.ask("decide", {"at": at, "decision": decision})
        finally:
            self._deciding = False
        if told is None:
            return None
        if again:
            self._before.append((at, told["before"]))
        self.changed = True
        self.summary["decisions"] = told["decisions"]
        for row in self.rows.values():
            if row.get("at") == at:
                row["decision"] = decision
        return self.index if told["index"] is None else int(told["index"])
