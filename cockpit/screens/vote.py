"""Votes and ratings of replies, for the chat screen: written down by the engine, added up here."""

from __future__ import annotations

from collections.abc import Sequence

from textual import work
from textual.content import Content
from textual.widgets import Static

from cockpit.connection.chat_target import Talker
from cockpit.screens.base import CockpitScreen
from cockpit.state.chat_tree import Answered, Tree, Turn
from cockpit.state.vote_stats import duels, means, told_duel, told_mean
from cockpit.widgets.conversation import Answer, Conversation
from cockpit.widgets.rating_dialog import Rating, TallySheet
from engine.protocol.messages import Judgement, JudgementQuery, Judgements


class JudgingScreen(CockpitScreen):
    """Subclasses fill the conversation: `said` with all its branches, and the targets that are talked to."""

    def __init__(self) -> None:
        super().__init__()
        self.said = Tree()
        self.talkers: list[Talker] = []

    def action_write(self) -> None:
        """Go to the input."""
        raise NotImplementedError

    @property
    def conversation(self) -> Conversation:
        return self.query_one(Conversation)

    def _meter(self, label: str, *facts: str) -> None:
        line = Content.assemble((label, "bold"), (f"  {' · '.join(filter(None, facts))}", "$foreground-muted"))
        self.query_one("#meter", Static).update(line, layout=False)

    @work(exclusive=True, group="judge")
    async def _rate(self, turn: Turn, column: int) -> None:
        rating = await self.app.push_screen_wait(Rating())
        if rating is None:
            return
        reply = turn.replies[column]
        kept = await self._judge(turn, [reply], rating=rating)
        if kept is None:
            return
        self.said = self.said.rated(turn.id, column, rating)
        await self._settled(turn.id)
        of_target = [mean for mean in means(kept) if mean.target == reply.target]
        self._meter("Rated", *(told_mean(mean) for mean in of_target))

    @work(exclusive=True, group="judge")
    async def _vote(self, turn: Turn, word: str) -> None:
        """Keep the vote, then say which was which and how the two stand."""
        replies = [turn.replies[column] for column in turn.blind]
        kept = await self._judge(turn, replies, vote=word)
        if kept is None:
            return
        self.said = self.said.voted(turn.id, word)
        await self._settled(turn.id)
        names = {reply.target for reply in replies}
        self._meter(word, *(told_duel(duel) for duel in duels(kept) if {duel.first, duel.second} == names))
        self.action_write()

    async def _judge(
        self, turn: Turn, replies: Sequence[Answered], vote: str = "", rating: int = 0
    ) -> list[Judgement] | None:
        """Have a judgement written down; returns all of these targets. None after showing why not."""
        asked = self.said.turns[turn.parent]
        judgement = Judgement(
            targets=[reply.target for reply in replies],
            prompt=asked.said,
            replies=[reply.text for reply in replies],
            vote=vote,
            rating=rating,
            settings=dict(replies[0].facts.get("settings", {})),
        )
        if await self.app.ask("judge", judgement) is None:
            return None
        return await self._judgements(judgement.targets)

    async def _judgements(self, targets: list[str]) -> list[Judgement]:
        found: Judgements | None = await self.app.ask("judgements", JudgementQuery(targets=targets))
        return found.judgements if found else []

    async def _settled(self, turn: int) -> None:
        """Show what has changed of an answer."""
        for row in self.conversation.query(Answer):
            if row.turn is not None and row.turn.id == turn:
                await row.settle(self.said.turns[turn], self.said.place(turn))
        self.refresh_bindings()

    @work(exclusive=True, group="judge")
    async def action_tally(self) -> None:
        targets = {talker.label for talker in self.talkers}
        targets |= {reply.target for turn in self.said.turns for reply in turn.replies}
        await self.app.push_screen_wait(TallySheet(await self._judgements(sorted(targets - {""}))))
