"""The conversation as a tree: nothing is lost, and every branch has its own prompt."""

from __future__ import annotations

import json

import pytest

from cockpit.state.chat_tree import ChatReply, ChatTree, dump_tree, parse_tree


def texts(tree: ChatTree) -> list[str]:
    return [turn.replies[0].text if turn.is_answer else turn.text for turn in tree.path]


def talk(tree: ChatTree, question: str, *replies: str) -> ChatTree:
    tree = tree.add_question(question)
    return tree.add_answer(tree.path[-1].id, [ChatReply(f"t{at}", reply) for at, reply in enumerate(replies)])


@pytest.fixture
def tree() -> ChatTree:
    return talk(talk(ChatTree(system="be brief"), "one", "1"), "two", "2")


def test_an_edited_question_is_a_branch_and_the_old_one_can_be_gone_back_to(tree: ChatTree) -> None:
    edited = tree.rephrase(0, "uno")
    assert texts(edited) == ["uno"] and edited.position(edited.path[0].id) == (2, 2)
    edited = edited.add_answer(edited.path[0].id, [ChatReply("t", "I")])
    back = edited.switch_branch(edited.path[0].id, -1)
    assert texts(back) == ["one", "1", "two", "2"]
    assert texts(back.switch_branch(0, -1)) == texts(back), "at the first it stays"
    assert texts(back.switch_branch(0, +1)) == ["uno", "I"]


def test_a_reply_made_anew_stands_beside_the_first_and_what_followed_stays_with_the_first(tree: ChatTree) -> None:
    anew = tree.add_answer(0, [ChatReply("t", "I")])
    assert texts(anew) == ["one", "I"]
    assert texts(talk(anew, "three", "3")) == ["one", "I", "three", "3"]
    assert texts(anew.switch_branch(anew.path[1].id, -1)) == ["one", "1", "two", "2"]


def test_each_target_is_asked_with_its_own_replies_and_a_late_one_with_the_first_ones() -> None:
    tree = talk(talk(ChatTree(system="s"), "a", "left", "right"), "b", "x", "y", "z")
    asked = tree.add_question("c")
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


def test_it_comes_back_from_disk_as_it_was(tree: ChatTree) -> None:
    tree = tree.rephrase(2, "2?").add_answer(
        4, [ChatReply("run@5", "zwei 二", {"tokens": 3}), ChatReply("base", "")], [1, 0]
    )
    tree = tree.rate(5, 0, 4).vote(5, "left").switch_branch(0, 1)
    again, extra = parse_tree(dump_tree(tree, targets=["run@5", "base"], sampling={"seed": 1}))
    assert again == tree
    assert extra == {"targets": ["run@5", "base"], "sampling": {"seed": 1}}
    assert "二" in dump_tree(tree)


def test_a_file_of_the_first_version_can_be_read() -> None:
    tree, _ = parse_tree('{"format": 1, "turns": [{"parent": -1, "said": "a"}]}')
    assert texts(tree) == ["a"]


def test_plain_messages_are_a_conversation_too() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for text in (json.dumps(messages), json.dumps({"messages": messages})):
        tree, _ = parse_tree(text)
        assert tree.messages(2) == messages


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        '{"format": 3, "turns": []}',
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
        parse_tree(text)


def test_a_rating_is_one_to_five(tree: ChatTree) -> None:
    assert tree.rate(1, 0, 5).turns[1].replies[0].rating == 5
    with pytest.raises(ValueError, match="1 to 5"):
        tree.rate(1, 0, 6)
