"""A conversation as a tree: an edited question and a regenerated reply are branches beside the old ones, so nothing is
lost. Pure.

An answer holds one reply of each target that was asked: one in a plain chat, two to four side by side. All targets
share the same branches; a target that joined late continues from the first target's replies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cockpit.language.translate import tr
from cockpit.state.tool_text import write_call, write_result

ROOT = -1
"""The parent of first turns."""
FORMAT = 2
"""Version of the file format. In version 1 a question's `text` was called `said`."""

Message = dict[str, str]


@dataclass(frozen=True)
class ChatReply:
    """One target's reply. `facts` are the worker's figures: `tokens`, `tokens_per_second`, `first_token_seconds`,
    `finish` …"""

    target: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    rating: int = 0
    """1 to 5, given by hand; 0 means not rated."""
    thinking: str = ""
    """What the model thought before it replied. Later prompts do not contain it."""


@dataclass(frozen=True)
class Turn:
    """A question (`text`) or an answer (`replies`, which is not empty then). `id` is its index in `ChatTree.turns`."""

    id: int
    parent: int
    text: str = ""
    replies: tuple[ChatReply, ...] = ()
    vote: str = ""
    """The outcome of a blind vote, empty before it."""
    blind: tuple[int, ...] = ()
    """Columns in the order in which they were shown while the names were hidden: indices of replies, from left to
    right."""

    @property
    def is_answer(self) -> bool:
        return bool(self.replies)


@dataclass(frozen=True)
class ChatTree:
    """`chosen` maps a parent to the child on the visible path; a parent that is not in it has its newest child
    there."""

    turns: tuple[Turn, ...] = ()
    chosen: Mapping[int, int] = field(default_factory=dict)
    system: str = ""

    @property
    def path(self) -> list[Turn]:
        """The visible turns, oldest first."""
        found: list[Turn] = []
        at = ROOT
        while children := self.children(at):
            at = self.chosen.get(at, children[-1].id)
            found.append(self.turns[at])
        return found

    def children(self, parent: int) -> list[Turn]:
        return [turn for turn in self.turns if turn.parent == parent]

    def position(self, turn: int) -> tuple[int, int]:
        """A turn's number among its siblings, from 1, and how many siblings there are."""
        ids = [each.id for each in self.children(self.turns[turn].parent)]
        return ids.index(turn) + 1, len(ids)

    def path_to(self, turn: int) -> list[Turn]:
        """The turns that lead to this one, and the turn itself."""
        found: list[Turn] = []
        while turn != ROOT:
            found.append(self.turns[turn])
            turn = self.turns[turn].parent
        return found[::-1]

    def messages(self, turn: int, column: int = 0) -> list[Message]:
        """The prompt for the target in `column` at this question: with its own earlier replies, else the first
        target's."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for each in self.path_to(turn):
            if each.is_answer:
                reply = each.replies[column if column < len(each.replies) else 0]
                messages.append({"role": "assistant", "content": reply.text})
            else:
                messages.append({"role": "user", "content": each.text})
        return messages

    # ── changes: each returns a new tree ──────────────────────────────────────────────────────────────────────────

    def add_question(self, text: str) -> ChatTree:
        """Add a question at the end of the visible path."""
        return self._add(text=text, parent=self._end)

    def rephrase(self, turn: int, text: str) -> ChatTree:
        """Add another wording of the question `turn`, as a branch beside it."""
        assert not self.turns[turn].is_answer
        return self._add(text=text, parent=self.turns[turn].parent)

    def add_answer(self, question: int, replies: Sequence[ChatReply], blind: Sequence[int] = ()) -> ChatTree:
        """Add an answer to `question`; a second answer becomes a branch beside the first."""
        assert replies and not self.turns[question].is_answer
        return self._add(parent=question, replies=tuple(replies), blind=tuple(blind))

    def switch_branch(self, turn: int, by: int) -> ChatTree:
        """Make the next (+1) or previous (-1) sibling of a turn visible. Stays at the ends."""
        parent = self.turns[turn].parent
        ids = [each.id for each in self.children(parent)]
        to = ids[max(0, min(len(ids) - 1, ids.index(turn) + by))]
        return replace(self, chosen={**self.chosen, parent: to})

    def rate(self, turn: int, column: int, rating: int) -> ChatTree:
        """Raises ValueError for a rating outside 0 to 5."""
        if not 0 <= rating <= 5:
            raise ValueError(tr("a rating is 1 to 5, not {rating}", rating=rating))
        replies = list(self.turns[turn].replies)
        replies[column] = replace(replies[column], rating=rating)
        return self._replace(replace(self.turns[turn], replies=tuple(replies)))

    def vote(self, turn: int, vote: str) -> ChatTree:
        return self._replace(replace(self.turns[turn], vote=vote))

    @property
    def _end(self) -> int:
        path = self.path
        return path[-1].id if path else ROOT

    def _add(self, **turn: Any) -> ChatTree:
        added = Turn(len(self.turns), **turn)
        return replace(self, turns=(*self.turns, added), chosen={**self.chosen, added.parent: added.id})

    def _replace(self, turn: Turn) -> ChatTree:
        return replace(self, turns=(*self.turns[: turn.id], turn, *self.turns[turn.id + 1 :]))


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def dump_tree(tree: ChatTree, **extra: Any) -> str:
    """The whole tree as JSON. `extra` is stored with it: targets, sampling settings."""
    turns = []
    for turn in tree.turns:
        fields = {name: value for name, value in asdict(turn).items() if value or name == "parent"}
        fields.pop("id", None)
        turns.append(fields)
    chosen = {str(parent): child for parent, child in tree.chosen.items()}
    document = {"format": FORMAT, "system": tree.system, "turns": turns, "chosen": chosen} | extra
    return json.dumps(document, ensure_ascii=False, indent=1)


def parse_tree(text: str) -> tuple[ChatTree, dict[str, Any]]:
    """The tree, and what was stored with it. Also reads a plain list of messages, bare or under `messages`. Raises
    ValueError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(tr("this is not a conversation: {error}", error=error)) from None
    plain = document.get("messages") if isinstance(document, dict) else document
    if isinstance(plain, list):
        return _tree_from_messages(plain), {}
    if not isinstance(document, dict) or document.get("format") not in range(1, FORMAT + 1):
        raise ValueError(tr("this is not a conversation that a cockpit saved"))
    try:
        turns = tuple(_parse_turn(number, fields) for number, fields in enumerate(document["turns"]))
        chosen = {int(parent): int(child) for parent, child in document.get("chosen", {}).items()}
        if any(turns[child].parent != parent for parent, child in chosen.items()):
            raise ValueError(tr("a chosen branch does not exist"))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(tr("the conversation is damaged: {error}", error=error)) from None
    extra = {name: value for name, value in document.items() if name not in ("format", "system", "turns", "chosen")}
    return ChatTree(turns, chosen, str(document.get("system") or "")), extra


def _parse_turn(number: int, fields: Mapping[str, Any]) -> Turn:
    parent = int(fields["parent"])
    if not ROOT <= parent < number:
        raise ValueError(tr("turn {number} follows turn {parent}, which comes later", number=number, parent=parent))
    replies = tuple(
        ChatReply(
            str(each["target"]),
            str(each["text"]),
            dict(each.get("facts") or {}),
            int(each.get("rating") or 0),
            str(each.get("thinking") or ""),
        )
        for each in fields.get("replies") or ()
    )
    blind = tuple(int(each) for each in fields.get("blind") or ())
    return Turn(number, parent, question_text(fields), replies, str(fields.get("vote") or ""), blind)


def question_text(fields: Mapping[str, Any]) -> str:
    """The text of a question in a saved turn of any version; empty for an answer."""
    return str(fields.get("text") or fields.get("said") or "")


def _write_calls(calls: Any) -> list[str]:
    """The `tool_calls` of a message as text; what is none is left out."""
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [
        write_call(str(function.get("name")), function.get("arguments"))
        for function in functions
        if isinstance(function, dict)
    ]


def _tree_from_messages(messages: list[Any]) -> ChatTree:
    tree = ChatTree()
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        if calls and (content is None or isinstance(content, str)):
            content = "\n".join(filter(None, [content or "", *_write_calls(calls)]))
        if not isinstance(content, str):
            raise ValueError(tr("message {number} has no text", number=number))
        path = tree.path
        if role == "tool":
            content = write_result(content)
            if path and not path[-1].is_answer:  # one of several results
                last = path[-1]
                tree = tree._replace(replace(last, text=f"{last.text}\n{content}"))
                continue
            role = "user"
        if role == "system" and not path:
            tree = replace(tree, system=content)
        elif role == "user" and (not path or path[-1].is_answer):
            tree = tree.add_question(content)
        elif role == "assistant" and path and not path[-1].is_answer:
            tree = tree.add_answer(path[-1].id, [ChatReply("", content)])
        else:
            raise ValueError(
                tr("message {number} has the role {role}, which cannot follow here", number=number, role=role)
            )
    return tree
