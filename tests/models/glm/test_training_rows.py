"""Conversations of the ChatGLM generations as training rows: the text as published, the labels as published, literal
tokens as text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from engine.models import tokenizers
from engine.models.template_lock import find_turn_ends
from engine.prep.rows import Rejects, Row
from engine.prep.templates import ChatTokenizer
from engine.prep.token_rows import MASKED, UNLIMITED, Counts
from engine.prep.tokenize import RowTokenizer, tokenize
from tests.models.glm.folders import golden, original


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return {number: tokenizers.load(original(tmp_path_factory.mktemp("glm") / "f", number)) for number in (1, 2, 3)}


def said(*turns: str, system: str = "") -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    chat: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    return chat + [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]


def rows(
    tokenizer: Any, *contents: dict[str, Any], loss_on: str = "assistant"
) -> tuple[list[list[int]], list[list[int]], dict[int, str]]:
    """Ids, trained ids, and reasons of refusal by place, as data preparation makes them."""
    reasons: dict[int, str] = {}
    rejects = Rejects(lambda line: reasons.update({json.loads(line)["line"]: json.loads(line)["reason"]}))
    placed = [Row("rows.jsonl", at, 0, content) for at, content in enumerate(contents)]
    found = list(tokenize(placed, RowTokenizer(tokenizer, loss_on, UNLIMITED), rejects, Counts()))
    trained = [[label for label in columns["labels"] if label != MASKED] for _, columns in found]
    return [columns["input_ids"] for _, columns in found], trained, reasons


def pieces(tokenizer: Any, text: str) -> list[int]:
    """As the original encodes one part of a conversation."""
    found: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return found


def test_the_first_generation_trains_the_last_reply_and_its_end(loaded: dict[int, Any], tmp_path: Path) -> None:
    kept = ChatTokenizer.load(ChatTokenizer.of(loaded[1]).save(tmp_path))
    cases = golden(1)["pair"]
    contents = [{"messages": said(case["prompt"], case["answer"])} for case in cases]
    for tokenizer in (loaded[1], kept):
        ids, trained, refused = rows(tokenizer, *contents)
        assert not refused and ids == [case["ids"] for case in cases]
        opened = loaded[1].convert_tokens_to_ids("<sop>")
        assert trained == [case["ids"][case["ids"].index(opened) + 1 :] for case in cases]

    chat = said("你好", "你好👋！", "那2+2呢？", "4。")
    (ids,), (trained,), _ = rows(kept, {"messages": chat})
    reply = [*pieces(loaded[1], "4。"), loaded[1].eos_token_id]
    assert ids == golden(1)["chat"][1]["ids"] + reply and trained == reply


def test_the_first_generation_does_not_train_what_it_reads_both_ways(loaded: dict[int, Any]) -> None:
    _, _, refused = rows(loaded[1], {"messages": said("a", "b")}, loss_on="all")
    assert "both ways" in refused[0]
    (ids,), (trained,), _ = rows(loaded[1], {"text": "hello\nworld"}, loss_on="all")
    gmask, sop = loaded[1].convert_tokens_to_ids(["[gMASK]", "<sop>"])
    text = [*pieces(loaded[1], "hello\nworld"), loaded[1].eos_token_id]
    assert ids == [gmask, sop, *text] and trained == text


def test_the_second_generation_trains_the_last_reply(loaded: dict[int, Any]) -> None:
    tokenizer = loaded[2]
    prefix = tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"])
    text = "[Round 1]\n\n问：你好\n\n答：hello\n\n[Round 2]\n\n问：def f(x):\n    x\n\n答："
    chat = said("你好", "hello", "def f(x):\n    x", "历史 one")
    (ids,), (trained,), _ = rows(tokenizer, {"messages": chat})
    reply = [*pieces(tokenizer, "历史 one"), 2]
    assert trained == reply and ids == [*prefix, *pieces(tokenizer, text), *reply]
    asked = tokenizer.apply_chat_template(chat[:3], add_generation_prompt=True, return_dict=False)
    assert asked == [*prefix, *pieces(tokenizer, text)]


@pytest.mark.parametrize("generation", (1, 2))
def test_a_conversation_that_ends_with_a_question_trains_nothing_there(loaded: dict[int, Any], generation: int) -> None:
    _, _, refused = rows(loaded[generation], {"messages": said("a", "b", "c")})
    assert "last turn alone" in refused[0]


def third(tokenizer: Any, role: str, text: str, metadata: str = "") -> list[int]:
    """A turn as the original builds it, from parts that are encoded each for itself."""
    return [
        tokenizer.convert_tokens_to_ids(f"<|{role}|>"),
        *pieces(tokenizer, f"{metadata}\n"),
        *pieces(tokenizer, text),
    ]


def test_the_third_generation_trains_each_reply_with_the_role_behind_it(loaded: dict[int, Any]) -> None:
    tokenizer = loaded[3]
    prefix = tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"])
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    texts = ("你好", "历史\n two ", "people <|assistant|>", "ok\n")
    chat = said(*texts, system="You are <|user|>")
    (ids,), (trained,), _ = rows(tokenizer, {"messages": chat})
    turns = [third(tokenizer, turn["role"], turn["content"]) for turn in chat]
    assert ids == [*prefix, *itertools.chain.from_iterable(turns), 2]
    # What follows <|assistant|>: the newline's pieces, the reply, and the next role's token or the last </s>.
    assert trained == [*turns[2][1:], user, *turns[4][1:], 2]
    # A turn of weight 0 is context.
    chat[2]["weight"] = 0
    assert rows(tokenizer, {"messages": chat})[1] == [[*turns[4][1:], 2]]


def test_the_third_generation_calls_tools_as_published(loaded: dict[int, Any]) -> None:
    tokenizer, case = loaded[3], golden(3)["chat"][3]
    system, question, call = case["history"]
    function = system["tools"][0]
    chat = [
        {"role": "system", "content": system["content"]},
        question,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "北京"}}}],
        },
        {"role": "tool", "content": case["query"]},
        {"role": "assistant", "content": "20 度"},
    ]
    (ids,), (trained,), _ = rows(tokenizer, {"messages": chat, "tools": [{"type": "function", "function": function}]})
    reply = third(tokenizer, "assistant", "20 度")
    assert ids == [*case["ids"], *reply[1:], 2]
    called = third(tokenizer, "assistant", call["content"], call["metadata"])
    assert trained == [*called[1:], tokenizer.convert_tokens_to_ids("<|observation|>"), *reply[1:], 2]
    # Without a system message the published sentence introduces the tools.
    text = tokenizer.apply_chat_template(chat[1:], tools=[function], tokenize=False)
    assert text.startswith("[gMASK]sop<|system|>\n " + system["content"] + '\n[\n    {\n        "name": "get_weather"')


def test_tokens_that_end_a_reply(loaded: dict[int, Any]) -> None:
    assert find_turn_ends(loaded[1]) == {golden(1)["special"]["<eop>"]}
    assert find_turn_ends(loaded[2]) == {2}
    special = golden(3)["special"]
    assert find_turn_ends(loaded[3]) == {2, special["<|user|>"], special["<|observation|>"]}


@pytest.mark.parametrize("generation", (1, 2, 3))
def test_special_tokens_in_what_people_write_stay_text(loaded: dict[int, Any], generation: int) -> None:
    tokenizer = loaded[generation]
    said_so = "people: [gMASK] sop eop <sop> <eop> </s> <s> <unk> <pad> <|user|> <|observation|> [MASK] \ufdd0 end"
    (ids,), (trained,), _ = rows(tokenizer, {"messages": said(said_so, said_so)})
    special = set(tokenizer.added_tokens_decoder)
    expected = pieces(tokenizer, said_so)
    assert not special & set(expected)
    end = tokenizer.eos_token_id
    opened = {1: [], 2: [], 3: pieces(tokenizer, "\n")}[generation]
    assert trained == [*opened, *expected, end]
    assert expected in [ids[at : at + len(expected)] for at in range(len(ids))]
    assert len([number for number in ids if number in special]) == {1: 3, 2: 3, 3: 5}[generation]


@pytest.mark.parametrize("generation", (1, 2))
@pytest.mark.parametrize("role", ("tool", "system"))
def test_turns_that_a_generation_does_not_know_are_refused(loaded: dict[int, Any], generation: int, role: str) -> None:
    chat = [*said("a"), {"role": role, "content": "x"}, {"role": "assistant", "content": "b"}]
    _, _, refused = rows(loaded[generation], {"messages": chat})
    assert "ChatGLM" in refused[0]
