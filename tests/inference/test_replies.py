"""Cleaning up replies: as published, and alike for finished and streamed ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inference.replies import CLEANUPS, GrowingReply, clean_reply, find_cleanup

CASES = [
    ("chatglm", " 你好,我是ChatGLM!\n", "你好，我是ChatGLM!"),
    ("chatglm", "是吗?是的:1,2;好", "是吗？是的：1,2；好"),
    ("chatglm", "Yes , it 's C# .", "Yes, it's C#."),
    ("chatglm2", " [[训练时间]],好 \n", "2023年,好"),
    ("chatglm3", "\n 你好!", "你好!"),
    ("chatglm3", "get_weather\n ```python\ntool_call(city='北京')\n```",
     "get_weather\n```python\ntool_call(city='北京')\n```"),
]  # fmt: skip
PARTS = ["[[训练时间]]", "[", "[[训", "]]", " ", "  ", "\n", "'", " ' ", ",", "!", "?", ":", ";", ".", "n't", " n't"]
PARTS += [" 's", "'m", "中", "文字", "abc", "get_weather", "a", "\t", "年"]


def tokenizer(name: str) -> SimpleNamespace:
    return SimpleNamespace(chat_template=f"{{#- x. replies: {name} -#}}x", decode=lambda ids, **_: "".join(ids))


@pytest.mark.parametrize(("name", "raw", "expected"), CASES)
def test_replies_are_cleaned_as_published(name: str, raw: str, expected: str) -> None:
    assert clean_reply(tokenizer(name), raw) == expected


@pytest.mark.parametrize("name", CLEANUPS)
@settings(max_examples=400, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=12))
def test_a_growing_reply_equals_the_finished_one(name: str, parts: list[str]) -> None:
    growing = GrowingReply(tokenizer(name))
    told = "".join(growing.add(part) for part in parts) + growing.finish()
    assert told == growing.text == CLEANUPS[name].clean("".join(parts))


def test_text_is_emitted_as_soon_as_it_is_certain() -> None:
    growing = GrowingReply(tokenizer("chatglm3"))
    assert [growing.add(part) for part in ("\n", " 你", "好", " ", "吗", "[", "x")] == [
        "",
        "你",
        "好",
        "",
        " 吗",
        "",
        "[x",
    ]


def test_other_templates_change_nothing() -> None:
    other = SimpleNamespace(chat_template="{{ messages }}")
    growing = GrowingReply(other)
    assert clean_reply(other, " a , b ") == " a , b " and growing.add(" ,") == " ," and growing.finish() == ""


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="chatglm2"):
        find_cleanup(tokenizer("chatglm9"))
