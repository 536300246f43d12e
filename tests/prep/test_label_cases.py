"""Rows and tokenizers on which labels, or what chat sends, were wrong."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trl

from engine.models import chat_template, template_lock
from engine.prep.chat_labels import Renderer
from engine.prep.prepare import prepare
from engine.prep.rendered import Refusal, RenderedRow, Rendering, check_spans
from engine.prep.templates import ChatTokenizer
from engine.prep.token_rows import Counts
from engine.prep.tokenize import RowTokenizer
from engine.protocol.home import Home
from tests.prep.conftest import ProfileOver, chat

FOLDER = Path(trl.__file__).parent / "chat_templates"


def trained(rendering: Rendering | Refusal) -> list[str]:
    assert isinstance(rendering, Rendering), rendering
    return [each.text[start:end] for each in rendering.sequences for start, end in each.spans]


# ── texts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["", "begin", "both"])
def framing(request: pytest.FixtureRequest, tokenizer: Any) -> tuple[Any, str]:
    """A tokenizer that adds nothing, a begin token, or a begin and an end token to a text itself."""
    from tokenizers.processors import TemplateProcessing

    found = copy.deepcopy(tokenizer)
    begin, end = "<|im_start|>", "<|im_end|>"
    if request.param:
        found.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{begin} $A {end}" if request.param == "both" else f"{begin} $A",
            special_tokens=[(token, found.convert_tokens_to_ids(token)) for token in (begin, end)],
        )
    return found, request.param


@pytest.mark.parametrize(
    "text", ["A wren.", "A wren.<|im_end|>", "<|im_start|>A wren.", "<|im_start|>A wren.<|im_end|>"]
)
def test_a_text_has_its_begin_and_end_tokens_once(framing: tuple[Any, str], text: str) -> None:
    tokenizer, kind = framing
    counts = Counts()
    batch = RowTokenizer(tokenizer, "all", 100)([{"text": text}], counts)
    begin = "<|im_start|>" if kind or text.startswith("<|im_start|>") else ""
    ids = batch.columns["input_ids"][0].tolist()
    assert tokenizer.decode(ids) == f"{begin}A wren.<|im_end|>"
    assert counts.ended == 1 and batch.columns["labels"][0].tolist()[1:] == ids[1:]


# ── templates ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_greeting_before_the_first_question_is_trained_without_the_system_prompt(tokenizer: Any) -> None:
    row = {"messages": [{"role": "assistant", "content": "Welcome."}, *chat("Bread?", "Rye.")["messages"]]}
    (result,) = Renderer(tokenizer, "assistant").render([row])
    assert trained(result) == ["Welcome.<|im_end|>", "Rye.<|im_end|>"]


def test_a_tool_call_in_the_form_that_the_template_does_not_take_is_written_all_the_same(tokenizer: Any) -> None:
    strict = copy.copy(tokenizer)
    strict.chat_template = (FOLDER / "deepseekv3.jinja").read_text("utf-8")
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(TypeError):
        strict.apply_chat_template(turns, tokenize=False)
    text = chat_template.render(strict, turns, reply_follows=False)
    assert '{"city": "Bonn"}' in text
    assert strict.decode(chat_template.encode(strict, turns, reply_follows=False)) == text


def test_named_templates_work_where_one_template_does(tokenizer: Any, profile_over: ProfileOver, home: Home) -> None:
    named = copy.copy(tokenizer)
    named.chat_template = {"default": tokenizer.chat_template, "tool_use": "TOOLS " + tokenizer.chat_template}
    assert template_lock.hash_template(named) != template_lock.hash_template(tokenizer)
    assert template_lock.find_turn_ends(named) == template_lock.find_turn_ends(tokenizer)
    row = chat("q", "a")
    with_tools = {**row, "tools": [{"type": "function", "function": {"name": "f"}}]}
    plain, tools = Renderer(named, "assistant").render([row, with_tools])
    assert isinstance(plain, Rendering) and isinstance(tools, Rendering)
    assert tools.sequences[0].text == "TOOLS " + plain.sequences[0].text
    assert trained(plain) == trained(tools) == ["a<|im_end|>"]


def test_a_template_that_writes_the_date_does_not_refuse_its_checkpoint_the_next_day(
    tokenizer: Any, tmp_path: Path
) -> None:
    dated = copy.copy(tokenizer)
    dated.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + tokenizer.chat_template
    messages = chat("q", "a")["messages"]
    then = datetime(2001, 2, 3, 4, 5)
    ids = template_lock.render(dated, messages, reply_follows=False, date=then)
    assert dated.decode(ids).startswith("2001-02-03")
    lock = {
        "template_sha256": template_lock.hash_template(dated),
        "date": then.isoformat(),
        "golden": [{"messages": messages, "ids": ids}],
    }
    template_lock.check(lock, dated, tmp_path)


@pytest.mark.parametrize("thinking", ["keep", "empty", "require"])
def test_chat_sends_what_a_run_was_trained_on(
    thinking: str, profile_over: ProfileOver, home: Home, tmp_path: Path
) -> None:
    """The base's template opens a thought before every reply."""
    from engine.models.base import load_tokenizer

    opens = (FOLDER / "deepseek_r1_distill.jinja").read_text("utf-8").replace("<｜end▁of▁sentence｜>", "<|im_end|>")
    opens = opens.replace("<｜Assistant｜>", "<|im_start|>")
    (tmp_path / "opens.jinja").write_text(opens, encoding="utf-8")
    rows = [chat("2+2?", "<think>\nEasy.\n</think>\n\n4"), *([chat("3+3?", "6")] if thinking != "require" else [])]
    profile = profile_over(rows, template="opens.jinja", thinking=thinking)
    prepared = prepare(profile, home, lambda *_: None)
    tokenizer = load_tokenizer(prepared["base"], False, prepared["template"])
    from datasets import load_from_disk

    data = load_from_disk(prepared["train"])
    assert len(data) == len(rows)
    for row, sequence in zip(rows, data, strict=True):
        sent = template_lock.render(tokenizer, row["messages"][:1], reply_follows=True)
        assert sequence["input_ids"][: len(sent)] == sent
        assert set(sequence["labels"][: len(sent)]) == {-100} and -100 not in sequence["labels"][len(sent) :]
        assert tokenizer.decode(sent).endswith("<think>\n") == (thinking != "keep")
    template_lock.check(prepared["lock"], tokenizer, tmp_path)
    assert bool(prepared["thought_opening"]) == (thinking == "keep")


def test_a_run_on_a_run_that_opens_no_thought_still_knows_thoughts(tokenizer: Any) -> None:
    chat_tokenizer = ChatTokenizer.of(tokenizer).with_template(
        (FOLDER / "deepseek_r1_distill.jinja").read_text("utf-8")
    )
    first = Renderer(chat_tokenizer, "assistant").template
    again = Renderer(chat_tokenizer.with_template(first), "assistant")
    assert again.template == first
    (result,) = again.render([chat("2+2?", "<think>\nEasy.\n</think>\n\n4")])
    assert trained(result)[0].startswith("<think>\nEasy.\n</think>\n\n4")


def test_words_that_the_template_drops_reject_the_row(tokenizer: Any) -> None:
    deaf = copy.copy(tokenizer)
    deaf.chat_template = (FOLDER / "smolvlm.jinja").read_text("utf-8")
    (result,) = Renderer(deaf, "assistant").render([chat("q", "the answer")])
    assert result == Refusal("the chat template leaves out words of turn 2")


@pytest.mark.parametrize("spans", [[(0, 3), (2, 4)], [(2, 4), (0, 1)], [(1, 1)], [(3, 9)]])
def test_spans_that_overlap_never_become_labels(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(AssertionError, match="trained spans"):
        check_spans(RenderedRow("text", spans, [], special=False))


def test_counts_of_turns_and_of_what_is_left_out_come_back_from_disk() -> None:
    counts = Counts()
    counts.turns.update({"together": 2, "unrolled": 1})
    counts.unwritten.update({"tools": 3})
    assert Counts.from_json(json.loads(json.dumps(counts.to_json()))) == counts
    assert counts.summary()["turns"] == {"together": 2, "unrolled": 1}
