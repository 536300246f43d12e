"""What is trained, by an oracle that knows nothing of how labels are found: every template that trl ships, with
generated conversations whose texts occur nowhere else."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trl

from engine.prep.chat_labels import Renderer
from engine.prep.formats.canonical import check_messages
from engine.prep.rendered import Refusal, RenderedRow, Rendering
from engine.prep.templates import ChatTokenizer
from engine.prep.token_rows import Counts
from engine.prep.tokenize import RowTokenizer

TEMPLATES = {
    path.stem: path.read_text("utf-8") for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")
}
NAMES = sorted(TEMPLATES)
_MARK = re.compile(r"<\|?[A-Za-z_/｜▁]+\|?>")
_NOT_SPECIAL = {"<think>", "</think>", "<tool_call>", "</tool_call>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "qtoolx",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "qnamex"}}},
        },
    }
]
PER_TEMPLATE = 12


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    """One of this module's own: it knows the special tokens of all templates."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(smollm2)
    marks = {mark for text in TEMPLATES.values() for mark in _MARK.findall(text)} - _NOT_SPECIAL
    found.add_special_tokens({"additional_special_tokens": sorted(marks)})
    return found


class Talk:
    """A generated conversation. Each text is a word of its own: `q<number>x`."""

    def __init__(self, seed: int) -> None:
        self._random, self._number = random.Random(seed), itertools.count()
        self.foreign: list[str] = []
        self.own: list[str] = []
        turns: list[dict[str, Any]] = []
        choose = self._random.choice
        if choose((True, False)):
            turns.append({"role": "system", "content": self._foreign()})
        if choose((True, False, False, False, False)):
            turns.append(self._reply())
        with_tools = choose((True, False))
        for _ in range(choose((1, 2, 3))):
            turns.append({"role": "user", "content": self._foreign(), **choose(({}, {}, {"name": "ann"}))})
            if with_tools and choose((True, False)):
                turns.append(self._call(choose((1, 1, 2))))
                calls = turns[-1]["tool_calls"]
                turns += [{"role": "tool", "content": self._foreign(), "name": "weather"} for _ in calls]
            turns += [self._reply() for _ in range(choose((1, 1, 1, 2)))]
        self.row: dict[str, Any] = {"messages": check_messages(turns, "messages")}
        if with_tools:
            self.row["tools"] = TOOLS
            self.foreign += ["qtoolx", "qnamex"]

    def _word(self) -> str:
        return f"q{next(self._number)}x"

    def _foreign(self) -> str:
        self.foreign.append(self._word())
        return self._random.choice(("{}", "{}\n", "two lines\n  {}")).format(self.foreign[-1])

    def _thought(self) -> str:
        return self._word().replace("q", "z")

    def _reply(self) -> dict[str, Any]:
        self.own.append(self._word())
        text = self._random.choice(("{}", "{}.", "  {}\n", "上{}！")).format(self.own[-1])
        kind = self._random.choice(("plain", "plain", "content", "key"))
        if kind == "content":
            return {"role": "assistant", "content": f"<think>\n{self._thought()}\n</think>\n\n{text}"}
        return {
            "role": "assistant",
            "content": text,
            **({"reasoning_content": self._thought()} if kind == "key" else {}),
        }

    def _call(self, count: int) -> dict[str, Any]:
        cities = [self._word() for _ in range(count)]
        self.own += cities
        calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}} for city in cities]
        return {"role": "assistant", "content": self._random.choice((None, "", "   ")), "tool_calls": calls}


def talks(name: str) -> list[Talk]:
    return [Talk(hash_of(name) + number) for number in range(PER_TEMPLATE)]


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 10**9


def trained(rendering: Rendering) -> list[str]:
    return [each.text[start:end] for each in rendering.sequences for start, end in each.spans]


@pytest.mark.parametrize("thinking", ["keep", "empty"])
@pytest.mark.parametrize("name", NAMES)
def test_every_reply_is_trained_once_and_nothing_else(name: str, thinking: str, tokenizer: Any) -> None:
    chat = ChatTokenizer.of(tokenizer).with_template(TEMPLATES[name])
    renderer = Renderer(chat, "assistant", thinking=thinking)
    theirs = chat.with_template(renderer.template)
    special = [token.content for token in chat.added_tokens_decoder.values() if token.special]
    taken = 0
    for talk in talks(name):
        (result,) = renderer.render([talk.row])
        if isinstance(result, Refusal):
            assert is_their_own(result.reason, theirs, talk.row), result.reason
            continue
        taken += 1
        parts = trained(result)
        for word in talk.own:
            assert sum(part.count(word) for part in parts) == 1, (word, parts)
        for word in talk.foreign:
            assert not any(word in part for part in parts), (word, parts)
        assert len(parts) == len([turn for turn in talk.row["messages"] if turn["role"] == "assistant"]) or (
            result.means == "marked"
        )
        for sequence in result.sequences:
            check_prompts(sequence, theirs, talk.row, exactly=result.means != "marked")
            for start, end in sequence.spans:
                closed = sequence.text[start:end].endswith(tuple(special)) or result.means == "marked"
                assert closed, sequence.text[start:end]
    assert taken or not accepts(theirs)


def check_prompts(sequence: RenderedRow, theirs: ChatTokenizer, row: dict[str, Any], exactly: bool) -> None:
    """Every trained span begins where a prompt that chat would send ends."""
    prompts = set()
    for at, turn in enumerate(row["messages"]):
        if turn["role"] == "assistant" and at:
            prompts.add(prompt_of(theirs, row["messages"][:at], row.get("tools")))
    first = row["messages"][0]["role"] == "assistant" or [turn["role"] for turn in row["messages"][:2]] == [
        "system",
        "assistant",
    ]
    for start, _ in sequence.spans:
        found = sequence.text[:start] in prompts
        assert found or not exactly or first, sequence.text[:start][-200:]


def prompt_of(theirs: ChatTokenizer, messages: list[dict[str, Any]], tools: Any) -> str:
    for as_text, as_none in itertools.product((False, True), repeat=2):
        try:
            text = theirs.apply_chat_template(
                [vary(turn, as_text, as_none, theirs) for turn in messages], tools=tools, add_generation_prompt=True
            )
        except Exception:  # noqa: BLE001 - templates raise what they like
            continue
        if all(call["function"]["name"] in text for turn in messages for call in turn.get("tool_calls", ())):
            return str(text)
    return "\0"


def vary(turn: dict[str, Any], as_text: bool, as_none: bool, theirs: ChatTokenizer) -> dict[str, Any]:
    import json

    content = turn["content"]
    turn = dict(turn)
    if moves(theirs) and turn["role"] == "assistant" and content.startswith("<think>"):
        thought, _, words = content.removeprefix("<think>\n").partition("\n</think>\n\n")
        turn |= {"content": words, "reasoning_content": thought}
    if not turn.get("tool_calls"):
        return turn
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"]) if as_text else call["function"]["arguments"],
            },
        }
        for call in turn["tool_calls"]
    ]
    return {**turn, "content": turn["content"] or (None if as_none else ""), "tool_calls": calls}


def moves(theirs: ChatTokenizer) -> bool:
    """Whether the template writes thoughts in marks other than `<think>`, or within such marks again."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    apart = {**turns[1], "reasoning_content": "zzthought"}
    try:
        plain = theirs.apply_chat_template([turns[0], apart])
        within = theirs.apply_chat_template([turns[0], {**turns[1], "content": "<think>\nzzthought\n</think>\n\nb"}])
    except Exception:  # noqa: BLE001 - templates raise what they like
        return False
    return "zzthought" in plain and ("<think>" not in plain or within.count("<think>") > plain.count("<think>"))


def is_their_own(reason: str, theirs: ChatTokenizer, row: dict[str, Any]) -> bool:
    """Whether the template itself raises this, or leaves words out."""
    if "leaves out" in reason:
        return True
    if "into earlier turns" in reason or "begins with the assistant" in reason:
        return len(row["messages"]) > 1
    for end, opened in itertools.product(range(1, len(row["messages"]) + 1), (False, True)):
        try:
            theirs.apply_chat_template(row["messages"][:end], tools=row.get("tools"), add_generation_prompt=opened)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            if str(error) in reason:
                return True
    return False


def accepts(theirs: ChatTokenizer) -> bool:
    """Whether the template writes the simplest conversation at all."""
    try:
        text = theirs.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "q0x"}])
    except Exception:  # noqa: BLE001 - templates raise what they like
        return False
    return "q0x" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_gives_what_it_gives_in_any_batch(name: str, tokenizer: Any) -> None:
    rows = [talk.row for talk in talks(name)]
    chat = ChatTokenizer.of(tokenizer).with_template(TEMPLATES[name])
    counts = Counts()
    batch = RowTokenizer(chat, "assistant", 10**6)(rows, counts)
    ids, lengths = batch.columns["input_ids"]
    labels, _ = batch.columns["labels"]
    together: dict[int, list[tuple[list[int], list[int]]]] = {}
    begin = 0
    for at, length in zip(batch.rows, lengths, strict=True):
        end = begin + length
        together.setdefault(at, []).append((ids[begin:end].tolist(), labels[begin:end].tolist()))
        begin = end
    single = RowTokenizer(chat, "assistant", 10**6)
    for at, row in reversed(list(enumerate(rows))):
        alone = single([row], Counts())
        ids, lengths = alone.columns["input_ids"]
        labels, _ = alone.columns["labels"]
        found, begin = [], 0
        for length in lengths:
            found.append((ids[begin : begin + length].tolist(), labels[begin : begin + length].tolist()))
            begin += length
        assert found == together.get(at, []), row
        assert all(any(label != -100 for label in labels) for _, labels in found)
    assert counts.turns.total() + len(batch.refused) == len(rows)


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "deepseek_r1_distill", "phi3", "lfm2_2_5"])
def test_turns_are_kept_apart_or_together_as_the_profile_says(name: str, tokenizer: Any) -> None:
    chat = ChatTokenizer.of(tokenizer).with_template(TEMPLATES[name])
    seen = Counter[str]()
    for talk in talks(name):
        (apart,) = Renderer(chat, "assistant", turns="unrolled").render([talk.row])
        (whole,) = Renderer(chat, "assistant", turns="together").render([talk.row])
        replies = sum(turn["role"] == "assistant" for turn in talk.row["messages"])
        if isinstance(apart, Rendering):
            assert len(apart.sequences) == replies == len(trained(apart))
            seen["unrolled"] += 1
        if isinstance(whole, Rendering):
            assert len(whole.sequences) == 1
            parts = trained(whole)
            assert all(sum(word in part for part in parts) == 1 for word in talk.own)
            assert not any(word in part for word in talk.foreign for part in parts)
            seen["together"] += 1
    assert seen["unrolled"] and seen["together"]


def test_thinking_decides_what_a_plain_reply_gets_where_chat_opens_a_thought(tokenizer: Any) -> None:
    chat = ChatTokenizer.of(tokenizer).with_template(TEMPLATES["deepseek_r1_distill"])
    plain = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    thought = {"messages": [plain["messages"][0], {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n4"}]}
    found = {}
    for thinking in ("keep", "empty", "require"):
        renderer = Renderer(chat, "assistant", thinking=thinking)
        results = renderer.render([plain, thought])
        found[thinking] = [trained(each) if isinstance(each, Rendering) else each.reason for each in results]
        opened = chat.with_template(renderer.template).apply_chat_template(plain["messages"][:1], None, True)
        assert opened.endswith("<think>\n") == (thinking != "keep")
    end = "<｜end▁of▁sentence｜>"
    assert found == {
        "keep": [[f"4{end}"], [f"<think>\nEasy.\n</think>\n\n4{end}"]],
        "empty": [[f"\n</think>\n\n4{end}"], [f"Easy.\n</think>\n\n4{end}"]],
        "require": ["turn 2 has no thought, which data.thinking requires", [f"Easy.\n</think>\n\n4{end}"]],
    }
