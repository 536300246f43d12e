"""Votes on replies, and ratings of them, for the chat screen. The engine stores them; their statistics are computed
here."""

from __future__ import annotations

from collections.abc import Sequence

from textual import work

from cockpit.language.translate import tr
from cockpit.screens.base import opens_dialog
from cockpit.screens.chat_targets import ChatTargetsScreen
from cockpit.state.chat_tree import ChatReply, Turn
from cockpit.state.vote_stats import count_votes, format_rating, format_votes, mean_ratings
from cockpit.widgets.chat_turns import Answer
from cockpit.widgets.rating_dialog import RatingDialog, VotesDialog
from engine.protocol.messages import Judgement, JudgementQuery, Judgements


class VoteScreen(ChatTargetsScreen):
    """Adds votes and ratings to a conversation."""

    def action_write(self) -> None:
        """Go to the input."""
        raise NotImplementedError

    @opens_dialog
    @work(exclusive=True, group="judge")
    async def rate(self, turn: Turn, column: int) -> None:
        """Ask for a rating of one reply and store it."""
        rating = await self.app.push_screen_wait(RatingDialog())
        if rating is None:
            return
        reply = turn.replies[column]
        judgements = await self._judge(turn, [reply], rating=rating)
        if judgements is None:
            return
        self.chat = self.chat.rate(turn.id, column, rating)
        await self._refresh_answer(turn.id)
        ratings = [mean for mean in mean_ratings(judgements) if mean.target == reply.target]
        self.show_status(tr("Rated"), *(format_rating(mean) for mean in ratings))

    @work(exclusive=True, group="judge")
    async def vote(self, turn: Turn, word: str) -> None:
        """Store a blind vote, then show the names and the standing of the two targets."""
        replies = [turn.replies[column] for column in turn.blind]
        judgements = await self._judge(turn, replies, vote=word)
        if judgements is None:
            return
        self.chat = self.chat.vote(turn.id, word)
        await self._refresh_answer(turn.id)
        names = {reply.target for reply in replies}
        pairs = [pair for pair in count_votes(judgements) if {pair.first, pair.second} == names]
        self.show_status(word, *map(format_votes, pairs))
        self.action_write()

    async def _judge(
        self, turn: Turn, replies: Sequence[ChatReply], vote: str = "", rating: int = 0
    ) -> list[Judgement] | None:
        """Store a judgement. Returns all judgements of these targets, or None after showing why it was not stored."""
        question = self.chat.turns[turn.parent]
        judgement = Judgement(
            targets=[reply.target for reply in replies],
            prompt=question.text,
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

    async def _refresh_answer(self, turn: int) -> None:
        """Show a changed answer."""
        for row in self.conversation.query(Answer):
            if row.turn is not None and row.turn.id == turn:
                await row.set_turn(self.chat.turns[turn], self.chat.position(turn))
        self.refresh_bindings()

    @opens_dialog
    @work(exclusive=True, group="judge")
    async def action_tally(self) -> None:
        """Show the statistics of all votes and ratings."""
        targets = {target.label for target in self.targets}
        targets |= {reply.target for turn in self.chat.turns for reply in turn.replies}
        await self.app.push_screen_wait(VotesDialog(await self._judgements(sorted(targets - {""}))))
