"""A conversation as a tree: a message said anew and a reply made anew are branches beside the old ones, and nothing is lost. Pure.

An answer holds one reply of each target that was asked: one in a plain chat, two to four side by side. So all targets have the same
branches, and one of them that joined late goes on from what the first had said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

ROOT = -1
"""The parent of first turns."""
FORMAT = 1

Message = dict[str, str]


@dataclass(frozen=True)
class Answered:
    """One target's reply. `facts` are the worker's figures: `tokens`, `tokens_per_second`, `first_token_seconds`, `finish` …"""

    target: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    rating: int = 0
    """1 to 5 by hand; 0 is none."""
    thinking: str = ""
    """What the model thought before it replied; no part of what later questions are asked with."""


@dataclass(frozen=True)
class Turn:
    """A question (`said`) or an answer (`replies`, never empty then). `id` is its place in `Tree.turns`."""

    id: int
    parent: int
    said: str = ""
    replies: tuple[Answered, ...] = ()
    vote: str = ""
    """Which of two blind replies was the better, once that was said."""
    blind: tuple[int, ...] = ()
    """The columns as they were shown, while the names were hidden: numbers of replies, from left to right."""

    @property
    def answer(self) -> bool:
        return bool(self.replies)


@dataclass(frozen=True)
class Tree:
    """`chosen` names for a parent the child that the way goes through; the newest where it says nothing."""

    turns: tuple[Turn, ...] = ()
    chosen: Mapping[int, int] = field(default_factory=dict)
    system: str = ""

    @property
    def way(self) -> list[Turn]:
        """The turns that are shown, from the first on."""
        found: list[Turn] = []
        at = ROOT
        while children := self.children(at):
            at = self.chosen.get(at, children[-1].id)
            found.append(self.turns[at])
        return found

    def children(self, parent: int) -> list[Turn]:
        return [turn for turn in self.turns if turn.parent == parent]

    def place(self, turn: int) -> tuple[int, int]:
        """Which of its siblings a turn is, from 1, and how many there are."""
        ids = [each.id for each in self.children(self.turns[turn].parent)]
        return ids.index(turn) + 1, len(ids)

    def line(self, turn: int) -> list[Turn]:
        """The turns that led to this one, and it."""
        found: list[Turn] = []
        while turn != ROOT:
            found.append(self.turns[turn])
            turn = self.turns[turn].parent
        return found[::-1]

    def messages(self, turn: int, column: int = 0) -> list[Message]:
        """What the target in `column` is asked with at this question: its own replies before, else the first target's."""
        told = [{"role": "system", "content": self.system}] if self.system else []
        for each in self.line(turn):
            if each.answer:
                reply = each.replies[column if column < len(each.replies) else 0]
                told.append({"role": "assistant", "content": reply.text})
            else:
                told.append({"role": "user", "content": each.said})
        return told

    # ── growing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, said: str) -> Tree:
        """One more question, at the end of the way."""
        return self._grown(said=said, parent=self._end)

    def again(self, turn: int, said: str) -> Tree:
        """The question `turn` put in other words, as a branch beside it."""
        assert not self.turns[turn].answer
        return self._grown(said=said, parent=self.turns[turn].parent)

    def answered(self, question: int, replies: Sequence[Answered], blind: Sequence[int] = ()) -> Tree:
        """An answer to `question`; a further one stands beside the first."""
        assert replies and not self.turns[question].answer
        return self._grown(parent=question, replies=tuple(replies), blind=tuple(blind))

    def moved(self, turn: int, by: int) -> Tree:
        """The way through the next (+1) or the one before (-1) of a turn's siblings; stays at the ends."""
        parent = self.turns[turn].parent
        ids = [each.id for each in self.children(parent)]
        to = ids[max(0, min(len(ids) - 1, ids.index(turn) + by))]
        return replace(self, chosen={**self.chosen, parent: to})

    def rated(self, turn: int, column: int, rating: int) -> Tree:
        """Raises ValueError for a rating that is none."""
        if not 0 <= rating <= 5:
            raise ValueError(f"a rating is 1 to 5, not {rating}")
        replies = list(self.turns[turn].replies)
        replies[column] = replace(replies[column], rating=rating)
        return self._with(replace(self.turns[turn], replies=tuple(replies)))

    def voted(self, turn: int, vote: str) -> Tree:
        return self._with(replace(self.turns[turn], vote=vote))

    @property
    def _end(self) -> int:
        way = self.way
        return way[-1].id if way else ROOT

    def _grown(self, **turn: Any) -> Tree:
        added = Turn(len(self.turns), **turn)
        return replace(self, turns=(*self.turns, added), chosen={**self.chosen, added.parent: added.id})

    def _with(self, turn: Turn) -> Tree:
        return replace(self, turns=(*self.turns[: turn.id], turn, *self.turns[turn.id + 1 :]))


# ── on disk ───────────────────────────────────────────────────────────────────────────────────────────────────────


def written(tree: Tree, **beside: Any) -> str:
    """JSON of the whole tree; `beside` is kept with it: targets, sampling."""
    turns = []
    for turn in tree.turns:
        kept = {name: value for name, value in asdict(turn).items() if value or name == "parent"}
        kept.pop("id", None)
        turns.append(kept)
    chosen = {str(parent): child for parent, child in tree.chosen.items()}
    document = {"format": FORMAT, "system": tree.system, "turns": turns, "chosen": chosen} | beside
    return json.dumps(document, ensure_ascii=False, indent=1)


def read(text: str) -> tuple[Tree, dict[str, Any]]:
    """The tree and what was kept beside it. A plain list of messages, bare or under `messages`, is a conversation too. Raises ValueError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"this is no conversation: {error}") from None
    plain = document.get("messages") if isinstance(document, dict) else document
    if isinstance(plain, list):
        return _of_messages(plain), {}
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("this is no conversation that was saved here")
    try:
        turns = tuple(_turn(number, kept) for number, kept in enumerate(document["turns"]))
        chosen = {int(parent): int(child) for parent, child in document.get("chosen", {}).items()}
        if any(turns[child].parent != parent for parent, child in chosen.items()):
            raise ValueError("a way through it leads nowhere")
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"the conversation is damaged: {error}") from None
    beside = {name: value for name, value in document.items() if name not in ("format", "system", "turns", "chosen")}
    return Tree(turns, chosen, str(document.get("system") or "")), beside


def _turn(number: int, kept: Mapping[str, Any]) -> Turn:
    parent = int(kept["parent"])
    if not ROOT <= parent < number:
        raise ValueError(f"turn {number} follows turn {parent}, which comes later")
    replies = tuple(
        Answered(
            str(each["target"]),
            str(each["text"]),
            dict(each.get("facts") or {}),
            int(each.get("rating") or 0),
            str(each.get("thinking") or ""),
        )
        for each in kept.get("replies") or ()
    )
    blind = tuple(int(each) for each in kept.get("blind") or ())
    return Turn(number, parent, str(kept.get("said") or ""), replies, str(kept.get("vote") or ""), blind)


def _of_messages(messages: list[Any]) -> Tree:
    tree = Tree()
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(content, str):
            raise ValueError(f"message {number} has no text")
        way = tree.way
        if role == "system" and not way:
            tree = replace(tree, system=content)
        elif role == "user" and (not way or way[-1].answer):
            tree = tree.ask(content)
        elif role == "assistant" and way and not way[-1].answer:
            tree = tree.answered(way[-1].id, [Answered("", content)])
        else:
            raise ValueError(f"message {number} is a {role}'s, out of turn")
    return tree
