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
from engine.prep.chat_labels import Renderer
from engine.prep.rendered import Refusal, Rendering

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


def trained(rendered: Rendering | Refusal) -> list[str]:
    assert isinstance(rendered, Rendering), rendered
    return [each.text[start:end] for each in rendered.sequences for start, end in each.spans]


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
        if isinstance(result, Refusal):  # some leave out a call, or what is said beside it
            assert "leaves out" in result.reason and any("tool_calls" in message for message in row["messages"])
            continue
        if result.means == "together":
            assert result.sequences[0].text == expected
        taken += 1
        words = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert len(trained(result)) == len(words)
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
        assert isinstance(result, Rendering) and result.means == "marked"
        # They also mark the line end behind a turn's last token, which the model never has to say.
        assert "".join(trained(result)) == tokenizer.decode(marked).replace("<|im_end|>\n", "<|im_end|>")


def test_turns_that_lose_their_empty_thoughts_in_history_are_trained_as_chat_would_have_them(
    templates: dict[str, str], tokenizer: Any
) -> None:
    thought = "<think>\n\n</think>\n\n"
    tokenizer.chat_template = templates["qwen3"]
    (apart,), (whole,) = (Renderer(tokenizer, "assistant", turns).render([MULTI]) for turns in ("auto", "together"))
    assert trained(apart) == [f"{thought}two<|im_end|>", f"{thought}four<|im_end|>"]
    assert trained(whole) == ["two<|im_end|>", f"{thought}four<|im_end|>"]
    tokenizer.chat_template = templates["gptoss"]
    (apart,), (whole,) = (Renderer(tokenizer, "assistant", turns).render([MULTI]) for turns in ("auto", "together"))
    final = "<|channel|>final<|message|>"
    assert trained(apart) == [f"{final}two<|return|>", f"{final}four<|return|>"]
    assert trained(whole) == [f"{final}two<|end|>", f"{final}four<|return|>"]


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
    slow._plans = _NoPlans()
    assert quick.render([row]) == slow.render([row])


class _NoPlans(dict[Any, Any]):
    """Every sequence of roles is known, to have no plan."""

    def __contains__(self, _: object) -> bool:
        return True

    def __getitem__(self, _: Any) -> Any:
        return None


def test_most_chats_are_rendered_once(tokenizer: Any, smollm2: Path) -> None:
    tokenizer.chat_template = (smollm2 / "chat_template.jinja").read_text(encoding="utf-8")
    renderer, rendered = Renderer(tokenizer, "assistant"), 0
    chat = renderer._tokenizer
    theirs = chat.apply_chat_template

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return theirs(*arguments, **more)

    chat.apply_chat_template = counted  # type: ignore[method-assign]
    renderer.render([MULTI] * 50)
    assert 50 <= rendered <= 50 + 8


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
    assert blind.unwritten == {"tools": len(WITH_TOOLS) - with_calls}  # a row whose call would be lost is refused
    tokenizer.chat_template = templates["qwen3"]
    seeing = Renderer(tokenizer, "assistant")
    seeing.render(WITH_TOOLS)
    assert not seeing.unwritten
