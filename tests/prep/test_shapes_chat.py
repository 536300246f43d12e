"""Rendering by real templates: bytes, and what is trained, tool calls included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config.bundled import find_bundled
from engine.prep import detect_format
from engine.prep.chat_labels import Refusal, RenderedRow, Renderer

SPECIAL = ["<|eot_id|>", "<|eom_id|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"]
TEMPLATES = (
    "qwen2_5",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_6",
    "llama3",
    "llama3_1",
    "phi3",
    "gptoss",
    "cohere2",
    "lfm2_v2",
)


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    """Templates of well-known models, as trl carries them."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.jinja")}


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    """One of this module's own, for it changes the template; it knows the end tokens of all these templates."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(smollm2)
    found.add_special_tokens({"additional_special_tokens": SPECIAL})
    return found


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


SINGLE = chat(("user", "Hi there"), ("assistant", "Hello!"))
MULTI = chat(("user", " one "), ("assistant", "two"), ("user", "three 三"), ("assistant", "four"))
SAMPLES = [
    canonical
    for name in ("messages", "sharegpt")
    for line in (find_bundled("data") / f"samples/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    for canonical in detect_format.convert(name, json.loads(line))
]
WITH_TOOLS = [row for row in SAMPLES if "tools" in row]


def trained(rendered: RenderedRow | Refusal) -> list[str]:
    assert isinstance(rendered, RenderedRow), rendered
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_chat_that_a_template_takes_is_rendered_byte_for_byte(
    name: str, templates: dict[str, str], tokenizer: Any
) -> None:
    tokenizer.chat_template = templates[name]
    rows, taken = [SINGLE, MULTI, *SAMPLES], 0
    for row, result in zip(rows, Renderer(tokenizer, "assistant").render(rows), strict=True):
        try:
            expected = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            assert isinstance(result, Refusal) and str(error) in result.reason
            continue
        both = any(message["content"] and "tool_calls" in message for message in row["messages"])
        if name == "gptoss" and both:
            continue  # it turns words before a call into a thought, and leaves that out later
        assert isinstance(result, RenderedRow), (row, result)
        assert result.text == expected
        taken += 1
        words = [  # some leave out what is said beside a call
            "" if "tool_calls" in message else message["content"]
            for message in row["messages"]
            if message["role"] == "assistant"
        ]
        assert len(result.spans) == len(words)
        assert all(word.strip() in part for word, part in zip(words, trained(result), strict=True))
        headers = ("<|im_start|>", "<|start_header_id|>", "<|user|>", "<|start|>user", "<|USER_TOKEN|>")
        assert not any(header in part for part in trained(result) for header in headers)
    assert taken > len(rows) / 2


@pytest.mark.parametrize(
    ("name", "calls"),
    [("qwen2_5", "<tool_call>"), ("qwen3", "<tool_call>"), ("llama3_1", '{"name": "'), ("gptoss", "to=functions.")],
)
def test_tool_calls_and_their_ends_are_trained(
    name: str, calls: str, templates: dict[str, str], tokenizer: Any
) -> None:
    tokenizer.chat_template = templates[name]
    row = next(row for row in WITH_TOOLS if sum("tool_calls" in message for message in row["messages"]) == 1)
    (result,) = Renderer(tokenizer, "assistant").render([row])
    call = next(message["tool_calls"][0]["function"] for message in row["messages"] if "tool_calls" in message)
    first, last = trained(result)
    assert calls in first and call["name"] in first and next(iter(call["arguments"].values())) in first
    assert first.endswith((*SPECIAL, "<|im_end|>")) and last.endswith((*SPECIAL, "<|im_end|>"))


@pytest.mark.parametrize("name", ["llama3_training", "qwen3_instruct_2507_training"])
def test_what_is_trained_is_what_the_templates_own_marks_say(
    name: str, templates: dict[str, str], tokenizer: Any
) -> None:
    tokenizer.chat_template = templates[name]
    for row in (SINGLE, MULTI):
        told = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        marked = [
            token for token, is_marked in zip(told["input_ids"], told["assistant_masks"], strict=True) if is_marked
        ]
        (result,) = Renderer(tokenizer, "assistant").render([row])
        # They also mark the line end behind a turn's last token, which the model never has to say.
        assert "".join(trained(result)) == tokenizer.decode(marked).replace("<|im_end|>\n", "<|im_end|>")


def test_turns_that_lose_their_empty_thoughts_in_history_are_trained_as_they_stand_there(
    templates: dict[str, str], tokenizer: Any
) -> None:
    thought = "<think>\n\n</think>\n\n"
    tokenizer.chat_template = templates["qwen3"]
    assert trained(Renderer(tokenizer, "assistant").render([MULTI])[0]) == ["two<|im_end|>", f"{thought}four<|im_end|>"]
    tokenizer.chat_template = templates["gptoss"]
    assert trained(Renderer(tokenizer, "assistant").render([MULTI])[0]) == [
        "<|channel|>final<|message|>two<|end|>",
        "<|channel|>final<|message|>four<|return|>",
    ]


def test_a_template_that_opens_a_reply_as_it_never_writes_one_is_refused(
    templates: dict[str, str], tokenizer: Any
) -> None:
    """DeepSeek-R1's begins every reply with a thought that it does not write in the conversation."""
    tokenizer.chat_template = templates["deepseek_r1_distill"]
    (result,) = Renderer(tokenizer, "assistant").render([SINGLE])
    assert (
        isinstance(result, Refusal) and "training and chat would differ" in result.reason and "<think>" in result.reason
    )


contents = st.text(max_size=20) | st.sampled_from(["qz0xv", "<|im_end|>", "\n", "<think>\nx</think>\n\ny", "{{ 1 }}"])
answers = contents.filter(lambda text: bool(text.strip()))
conversations = st.lists(st.tuples(contents, answers), min_size=1, max_size=3)


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5", "qwen3", "llama3", "phi3"])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=conversations, system=contents)
def test_spans_by_skeleton_are_those_of_prefix_differences(
    name: str, smollm2: Path, templates: dict[str, str], tokenizer: Any, pairs: list[tuple[str, str]], system: str
) -> None:
    """Each row is rendered by a fresh renderer that may use skeletons, and worked out without."""
    tokenizer.chat_template = templates.get(name) or (smollm2 / "chat_template.jinja").read_text(encoding="utf-8")
    turns = [turn for question, answer in pairs for turn in (("user", question), ("assistant", answer))]
    row = chat(*([("system", system)] if system else []), *turns)
    quick, slow = Renderer(tokenizer, "assistant"), Renderer(tokenizer, "assistant")
    whole = slow._apply_template([row["messages"]], [None], generation_prompt=False)
    (expected,) = slow._work_out([row], whole)
    (found,) = quick.render([row])
    if isinstance(expected, Refusal):
        assert isinstance(found, RenderedRow) or found == expected  # a skeleton may see what differences cannot
    else:
        assert found == expected


def test_most_chats_are_rendered_once(tokenizer: Any, smollm2: Path) -> None:
    tokenizer.chat_template = (smollm2 / "chat_template.jinja").read_text(encoding="utf-8")
    renderer, rendered = Renderer(tokenizer, "assistant"), 0

    def counted(chats: list[Any], *arguments: Any, **more: Any) -> Any:
        nonlocal rendered
        rendered += len(chats)
        return type(tokenizer).apply_chat_template(tokenizer, chats, *arguments, **more)

    tokenizer.apply_chat_template = counted
    try:
        renderer.render([MULTI] * 50)
    finally:
        del tokenizer.apply_chat_template
    assert rendered <= 50 + 5


def test_a_turn_of_weight_0_is_not_trained(tokenizer: Any, smollm2: Path) -> None:
    tokenizer.chat_template = (smollm2 / "chat_template.jinja").read_text(encoding="utf-8")
    (row,) = detect_format.convert("messages", MULTI)
    row["messages"][1]["weight"] = 0
    assert trained(Renderer(tokenizer, "assistant").render([row])[0]) == ["four<|im_end|>"]


def test_rows_for_other_methods_are_refused_by_name(tokenizer: Any) -> None:
    pair = {"prompt": SINGLE["messages"][:1], "chosen": SINGLE["messages"][1:], "rejected": MULTI["messages"][1:2]}
    judgement = {"prompt": SINGLE["messages"][:1], "completion": SINGLE["messages"][1:], "label": True}
    reasons = [
        result.reason for result in Renderer(tokenizer, "all").render([pair, judgement]) if isinstance(result, Refusal)
    ]
    assert reasons == [
        "these are preference pairs: they train with method.kind dpo, orpo or reward",
        "these are single judgements: they train with method.kind kto",
    ]


def test_tools_that_the_template_does_not_write_are_counted(
    templates: dict[str, str], tokenizer: Any, smollm2: Path
) -> None:
    tokenizer.chat_template = (smollm2 / "chat_template.jinja").read_text(encoding="utf-8")
    blind, seeing = Renderer(tokenizer, "assistant"), None
    blind.render(WITH_TOOLS)
    with_calls = sum(any("tool_calls" in message for message in row["messages"]) for row in WITH_TOOLS)
    assert 0 < with_calls < len(WITH_TOOLS)
    assert blind.unwritten == {"tools": len(WITH_TOOLS), "tool_calls": with_calls}
    tokenizer.chat_template = templates["qwen3"]
    seeing = Renderer(tokenizer, "assistant")
    seeing.render(WITH_TOOLS)
    assert not seeing.unwritten
