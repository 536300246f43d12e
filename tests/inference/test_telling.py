"""Tokens become text, streamed and finished alike: stop texts, thinking, and characters of several tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inference.detokenizer import StreamedReply, find_stop_tokens, find_thinking_end, split_place, thinking_marks


class Letters:
    """A tokenizer of bytes; ids from 256 on are special tokens."""

    special = ("<s>", "[THINK]", "[/THINK]")

    def __init__(self, template: str | None = None) -> None:
        self.chat_template = template
        self.all_special_ids = [256, 257, 258]

    def get_added_vocab(self) -> dict[str, int]:
        return {name: 256 + index for index, name in enumerate(self.special)}

    def decode(self, ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        parts = [bytes([each]) if each < 256 else self.special[each - 256].encode() for each in ids]
        kept = [part for each, part in zip(ids, parts, strict=True) if each < 256 or not skip_special_tokens]
        return b"".join(kept).decode(errors="replace")

    def __call__(self, text: str, **_: Any) -> Any:
        ids = [*text.encode()]
        return type("Encoded", (), {"input_ids": ids})


def stream_reply(
    text: str | list[int], stop: tuple[str, ...] = (), prompt: str = "", template: str | None = None
) -> StreamedReply:
    """Stream a reply, and check that its pieces together are the finished text."""
    streamed = StreamedReply(Letters(template), [*prompt.encode()], stop)
    said = thought = ""
    for token in text if isinstance(text, list) else text.encode():
        piece = streamed.add(token)
        said, thought = said + piece.text, thought + piece.thinking
        assert not any(each in said for each in stop) and "\ufffd" not in said
        if streamed.stopped:
            break
    piece = streamed.finish()
    assert (said + piece.text, thought + piece.thinking) == (streamed.text, streamed.thinking)
    return streamed


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one EN", ("END",), "one EN"),
        ("abcabd", ("abd", "bca"), "a"),
        ("aaab", ("aab",), "a"),
        ("中文。好", ("。",), "中文"),
        ("中文好", ("。",), "中文好"),
        ("END", ("END",), ""),
        ("</thi", (), "</thi"),
        ("<thi", (), "<thi"),
        ("\n", (), "\n"),
    ],
)
def test_a_reply_ends_before_a_stop_text(text: str, stop: tuple[str, ...], expected: str) -> None:
    streamed = stream_reply(text, stop)
    assert (streamed.text, streamed.stopped) == (expected, expected != text)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="ab中 \n<>/think", max_size=30),
    stop=st.lists(st.text(alphabet="ab中 ", min_size=1, max_size=3), max_size=2),
)
def test_streamed_text_ends_where_the_finished_text_does(text: str, stop: list[str]) -> None:
    if text.lstrip().startswith("<think>"):
        return
    ends = [(place + len(each), place) for each in stop if (place := text.find(each)) >= 0]
    assert stream_reply(text, tuple(stop)).text == text[: min(ends, default=(0, len(text)))[1]]


@pytest.mark.parametrize(
    ("text", "prompt", "thinking", "reply"),
    [
        ("<think>\nSo, hm.\n</think>\n\nPa ris", "", "So, hm.", "Pa ris"),
        ("\n<think></think>yes", "", "", "yes"),
        ("So\n\nthen </think> yes", "user: hi <think>\n", "So\n\nthen", "yes"),
        ("<think>never done", "", "never done", ""),
        ("I use <think> tags</think>", "", "", "I use <think> tags</think>"),
        ("<think>a END b</think>c END d", "", "a END b", "c "),
        ("<think>a < b</think>1 < 2", "", "a < b", "1 < 2"),
    ],
)
def test_thinking_is_separated_from_the_reply(text: str, prompt: str, thinking: str, reply: str) -> None:
    streamed = stream_reply(text, ("END",), prompt)
    assert (streamed.thinking, streamed.text) == (thinking, reply)


def test_a_template_can_name_its_marks_of_thinking() -> None:
    mistral = "{{ messages }} [THINK]x[/THINK]"
    assert thinking_marks(Letters(mistral)) == ("[THINK]", "[/THINK]")
    assert thinking_marks(Letters("{#- ours. thinking: <<< >>> -#}x")) == ("<<<", ">>>")
    assert stream_reply("<<<hm>>>ja", template="{#- ours. thinking: <<< >>> -#}x").thinking == "hm"
    with pytest.raises(ValueError, match="names 1 marks"):
        thinking_marks(Letters("{#- ours. thinking: <<< -#}x"))
    # Marks that are special tokens, which are no text otherwise.
    streamed = stream_reply([257, *b"hm", 258, *b"ja", 256], template=mistral)
    assert (streamed.thinking, streamed.text) == ("hm", "ja")


def test_a_schema_begins_after_thinking() -> None:
    assert find_thinking_end(Letters(), [*b"hi <think>\n"]) == tuple(b"</think>")
    assert find_thinking_end(Letters(), [*b"hi"]) == ()


def test_half_a_character_at_the_end_is_not_emitted() -> None:
    assert stream_reply([*"中文".encode()][:-1]).text == "中"


def test_stop_texts_that_are_tokens() -> None:
    assert find_stop_tokens(Letters(), ("<s>", "x")) == {256} and split_place("abEN", ("END",)) == 2
