"""The conversation as a tree: nothing said is lost, and every branch asks with what led to it."""

from __future__ import annotations

import json

import pytest

from cockpit.state.chat_tree import Answered, Tree, read, written


def said(tree: Tree) -> list[str]:
    return [turn.replies[0].text if turn.answer else turn.said for turn in tree.way]


def talk(tree: Tree, question: str, *replies: str) -> Tree:
    tree = tree.ask(question)
    return tree.answered(tree.way[-1].id, [Answered(f"t{at}", reply) for at, reply in enumerate(replies)])


@pytest.fixture
def tree() -> Tree:
    return talk(talk(Tree(system="be brief"), "one", "1"), "two", "2")


def test_an_edited_question_is_a_branch_and_the_old_one_can_be_gone_back_to(tree: Tree) -> None:
    edited = tree.again(0, "uno")
    assert said(edited) == ["uno"] and edited.place(edited.way[0].id) == (2, 2)
    edited = edited.answered(edited.way[0].id, [Answered("t", "I")])
    back = edited.moved(edited.way[0].id, -1)
    assert said(back) == ["one", "1", "two", "2"]
    assert said(back.moved(0, -1)) == said(back), "at the first it stays"
    assert said(back.moved(0, +1)) == ["uno", "I"]


def test_a_reply_made_anew_stands_beside_the_first_and_what_followed_stays_with_the_first(tree: Tree) -> None:
    anew = tree.answered(0, [Answered("t", "I")])
    assert said(anew) == ["one", "I"]
    assert said(talk(anew, "three", "3")) == ["one", "I", "three", "3"]
    assert said(anew.moved(anew.way[1].id, -1)) == ["one", "1", "two", "2"]


def test_each_target_is_asked_with_its_own_replies_and_a_late_one_with_the_first_ones() -> None:
    tree = talk(talk(Tree(system="s"), "a", "left", "right"), "b", "x", "y", "z")
    asked = tree.ask("c")
    spoken = [[message["content"] for message in asked.messages(4, column)] for column in range(3)]
    assert spoken == [
        ["s", "a", "left", "b", "x", "c"],
        ["s", "a", "right", "b", "y", "c"],
        ["s", "a", "left", "b", "z", "c"],
    ]
    assert [message["role"] for message in asked.messages(4)] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


def test_it_comes_back_from_disk_as_it_was(tree: Tree) -> None:
    tree = tree.again(2, "2?").answered(4, [Answered("run@5", "zwei 二", {"tokens": 3}), Answered("base", "")], [1, 0])
    tree = tree.rated(5, 0, 4).voted(5, "left").moved(0, 1)
    again, beside = read(written(tree, targets=["run@5", "base"], sampling={"seed": 1}))
    assert again == tree
    assert beside == {"targets": ["run@5", "base"], "sampling": {"seed": 1}}
    assert "二" in written(tree)


def test_plain_messages_are_a_conversation_too() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for text in (json.dumps(messages), json.dumps({"messages": messages})):
        tree, _ = read(text)
        assert tree.messages(2) == messages


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        '{"format": 2, "turns": []}',
        '{"format": 1}',
        '{"format": 1, "turns": [{"parent": 0, "said": "a"}]}',
        '{"format": 1, "turns": [{"parent": -1, "said": "a"}], "chosen": {"-1": 4}}',
        '{"format": 1, "turns": [{"parent": -1, "replies": [3]}]}',
        '[{"role": "assistant", "content": "a"}]',
        '[{"role": "user", "content": 3}]',
    ],
)
def test_what_is_no_conversation_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"conversation|message"):
        read(text)


def test_a_rating_is_one_to_five(tree: Tree) -> None:
    assert tree.rated(1, 0, 5).turns[1].replies[0].rating == 5
    with pytest.raises(ValueError, match="1 to 5"):
        tree.rated(1, 0, 6)
