"""Tokens and labels, by the real tokenizer and by templates made to be difficult."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prep.rows import Rejects, Row
from engine.prep.templates import unwrap_tokenizer
from engine.prep.token_rows import MASKED, Counts, Tokens
from engine.prep.tokenize import RowTokenizer, encode, label, tokenize
from tests.prep.conftest import chat

CHATS = [
    chat("hi", "hello"),
    chat("first", "one", "second", "two 二", system="Be brief."),
    chat("question", " leading blank, emoji 🎉🎉 and <|im_end|> inside", "next", "\n\nnewlines\n"),
    chat("多语言", "回答：你好，世界。"),
]


def run(
    tokenizer: Any, rows: list[dict[str, Any]], loss_on: str = "assistant", max_length: int = 512
) -> tuple[list[Tokens], Counts, Rejects]:
    counts, rejects = Counts(), Rejects(lambda _: None)
    stream = (Row("f", line, 0, content) for line, content in enumerate(rows, 1))
    made = tokenize(stream, RowTokenizer(tokenizer, loss_on, max_length), rejects, counts)
    return [Tokens(columns["input_ids"], columns["labels"], row) for row, columns in made], counts, rejects


def trained(tokenizer: Any, tokens: Tokens) -> str:
    text: str = tokenizer.decode([each for each in tokens.labels if each != MASKED])
    return text


def test_ids_are_those_of_apply_chat_template(tokenizer: Any) -> None:
    made, counts, _ = run(tokenizer, CHATS)
    expected = [tokenizer.apply_chat_template(each["messages"], return_dict=False) for each in CHATS]
    assert [each.ids for each in made] == expected
    assert (counts.rows, counts.tokens, counts.ended) == (4, sum(map(len, expected)), 4)
    assert counts.trained_tokens == sum(label != MASKED for each in made for label in each.labels)


def test_the_assistants_turns_and_their_ends_are_trained_and_nothing_else(tokenizer: Any) -> None:
    made, _, _ = run(tokenizer, CHATS)
    assert trained(tokenizer, made[0]) == "hello<|im_end|>"
    assert trained(tokenizer, made[1]) == "one<|im_end|>two 二<|im_end|>"
    assert trained(tokenizer, made[3]) == "回答：你好，世界。<|im_end|>"
    for each in made:
        assert all(label in (MASKED, token) for token, label in zip(each.ids, each.labels, strict=True))


def test_a_prompt_prefix_is_what_chat_would_send(tokenizer: Any) -> None:
    """The tokens before the first trained one are those of the prompt with its generation marker."""
    (made,), _, _ = run(tokenizer, CHATS[:1])
    first = next(i for i, label in enumerate(made.labels) if label != MASKED)
    prompt = tokenizer.apply_chat_template(CHATS[0]["messages"][:1], add_generation_prompt=True, return_dict=False)
    assert made.ids[:first] == prompt


def test_loss_on_all_trains_everything_but_the_first_token(tokenizer: Any) -> None:
    made, _, _ = run(tokenizer, [*CHATS[:1], {"text": "plain text"}], loss_on="all")
    assert [each.labels[1:] for each in made] == [each.ids[1:] for each in made]
    assert [each.labels[0] for each in made] == [MASKED, MASKED]
    assert made[1].ids == tokenizer("plain text<|im_end|>").input_ids


def test_plain_text_under_assistant_loss_is_rejected_not_trained_in_full(tokenizer: Any) -> None:
    made, counts, rejects = run(tokenizer, [{"text": "plain"}, CHATS[0]])
    assert (len(made), counts.rows, rejects.count) == (1, 1, 1)
    assert "method.loss_on: all" in rejects.first[0]


def test_truncation_is_counted_and_rows_without_a_trained_token_are_dropped(tokenizer: Any) -> None:
    long_question = chat("word " * 100, "lost")
    long_reply = chat("q", "word " * 100)
    made, counts, _ = run(tokenizer, [long_question, long_reply, CHATS[0]], max_length=60)
    assert [len(each.ids) for each in made] == [60, len(made[1].ids)]
    assert (counts.truncated, counts.masked, counts.rows, counts.ended) == (2, 1, 2, 1)
    assert counts.summary()["max"] == 60


def test_a_template_that_rewrites_earlier_turns_trains_each_reply_behind_what_chat_sends(tokenizer: Any) -> None:
    odd = copy.copy(tokenizer)
    odd.chat_template = "{{ messages|length }}" + tokenizer.chat_template
    made, counts, rejects = run(odd, [CHATS[0], CHATS[1]])
    replies = [turn for row in (CHATS[0], CHATS[1]) for turn in row["messages"] if turn["role"] == "assistant"]
    assert rejects.count == 0 and counts.turns == {"unrolled": 2} and len(made) == counts.rows == len(replies)
    assert [trained(odd, each) for each in made] == [f"{turn['content']}<|im_end|>" for turn in replies]
    prompt = odd.apply_chat_template(CHATS[0]["messages"][:1], add_generation_prompt=True, tokenize=False)
    assert odd.decode(made[0].ids) == f"{prompt}{replies[0]['content']}<|im_end|>\n"


def test_a_template_that_raises_rejects_only_that_row(tokenizer: Any) -> None:
    strict = copy.copy(tokenizer)
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + tokenizer.chat_template
    )
    made, _, rejects = run(strict, CHATS[:3])
    assert [each.row.line for each in made] == [1, 3]
    assert "f:2: the chat template refuses it: no system turn" in rejects.first


def test_a_template_without_end_token_trains_no_end(tokenizer: Any) -> None:
    plain = copy.copy(tokenizer)
    plain.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}"
        "assistant: {% endif %}"
    )
    (made,), counts, _ = run(plain, CHATS[:1])
    assert counts.ended == 0
    assert trained(plain, made) == " hello\n"  # the blank before it is one token with the word


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.content | trim }}<|im_end|>{% endfor %}"])
def test_a_template_that_trims_still_gives_labels(tokenizer: Any, template: str) -> None:
    trimming = copy.copy(tokenizer)
    trimming.chat_template = template
    (made,), _, _ = run(trimming, [chat(" q ", "  a  ")])
    assert trained(trimming, made) == "a<|im_end|>"


CONTENT = st.lists(
    st.sampled_from(["word", " ", "  ", "\n", "…", "你好", "don't", "1.", "<|im_end|>", "é", "A b"]),
    min_size=1,
    max_size=8,
).map("".join)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(CONTENT, min_size=2, max_size=5), st.sampled_from(["assistant", "all"]), st.integers(20, 80))
def test_labels_are_those_of_offsets_in_the_whole_text(
    tokenizer: Any, contents: list[str], loss_on: str, max_length: int
) -> None:
    from engine.prep.chat_labels import Renderer
    from engine.prep.rendered import Refusal

    row = chat(*contents, system=contents[0])
    made, counts, rejects = run(tokenizer, [row], loss_on, max_length)
    (result,) = Renderer(tokenizer, loss_on).render([row])
    if isinstance(result, Refusal):
        assert (made, rejects.count) == ([], 1)
        return
    (rendered,) = result.sequences
    (encoding,) = encode([rendered], unwrap_tokenizer(tokenizer))
    labels = label(rendered, encoding)[:max_length]
    expected = [(encoding.ids[:max_length], labels)] if {*labels} - {MASKED} else []
    assert [(each.ids, each.labels) for each in made] == expected
    assert counts.masked == 1 - len(expected) and counts.truncated == (len(encoding.ids) > max_length)
    closed = [encoding.char_to_token(end - 1) for end in rendered.ends]
    assert counts.ended == any(at < len(labels) and labels[at] != MASKED for at in closed if expected)
