"""Rendering without transformers' tokenizer classes: the same bytes, for templates as models have them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.prep.templates import ChatTokenizer
from tests.prep.conftest import chat

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{- bos_token }}\n{%- if tools is defined and tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}\n"
    "{%- if not date_string is defined %}\n    {%- set date_string = strftime_now('%d %b %Y') %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
    "message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)
MISTRAL = (
    "{%- set ns = namespace(index=0) %}{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{{- '[INST] ' + m['content'] + ' [/INST]' }}{%- elif m.role == 'system' %}"
    "{{- raise_exception('Only user and assistant roles are supported!') }}"
    "{%- else %}{{- ' ' + m['content'] + eos_token }}{% generation %}{{- ns.index }}{% endgeneration %}"
    "{%- set ns.index = ns.index + 1 %}{%- endif %}{%- endfor %}"
)
CHATS = [
    chat("hi", "hello"),
    chat("first ", " one", "second\n", "two 二 <&>", system="Be brief."),
    chat("x" * 300, "emoji 🎉"),
]


@pytest.fixture(params=["own", "llama2", "llama3", "mistral", "named"])
def pair(request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path) -> tuple[Any, ChatTokenizer]:
    """A tokenizer of transformers, and what a worker loads of it."""
    theirs = copy.copy(tokenizer)
    templates = {"llama2": LLAMA2, "llama3": LLAMA3, "mistral": MISTRAL, "own": tokenizer.chat_template}
    theirs.chat_template = templates.get(request.param) or {
        "default": LLAMA2,
        "tool_use": LLAMA3,
    }
    return theirs, ChatTokenizer.load(ChatTokenizer.of(theirs).save(tmp_path))


def result(render: Any) -> str | tuple[str, str]:
    try:
        return str(render())
    except Exception as error:  # noqa: BLE001 - templates raise what they like
        return type(error).__name__, str(error)


TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]
CALLING = [
    {"role": "user", "content": "find <it>"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {}}}],
    },
    {"role": "tool", "content": "found", "name": None},
]


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_texts_are_those_of_apply_chat_template(pair: tuple[Any, ChatTokenizer], opened: bool, tools: Any) -> None:
    theirs, ours = pair
    thinking = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "because"}]
    rendered = 0
    for messages in [*(row["messages"] for row in CHATS), CALLING, thinking, []]:
        arguments = {"tools": tools, "tokenize": False, "add_generation_prompt": opened}
        expected = result(lambda: theirs.apply_chat_template(messages, **arguments))  # noqa: B023
        assert result(lambda: ours.apply_chat_template(messages, **arguments)) == expected  # noqa: B023
        rendered += isinstance(expected, str)
    assert rendered >= 3
    several = [CHATS[0]["messages"], CHATS[2]["messages"]]
    assert ours.apply_chat_template(several) == theirs.apply_chat_template(several, tokenize=False)


def test_what_tells_turns_apart_is_the_same(pair: tuple[Any, ChatTokenizer]) -> None:
    theirs, ours = pair
    assert ours.eos_token == theirs.eos_token and ours.chat_template == theirs.chat_template
    assert {id_: (token.content, token.special) for id_, token in ours.added_tokens_decoder.items()} == {
        id_: (token.content, token.special) for id_, token in theirs.added_tokens_decoder.items()
    }


def test_without_a_template_it_says_so(tokenizer: Any) -> None:
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        ChatTokenizer.of(plain).apply_chat_template(CHATS[0]["messages"])


def test_a_worker_loads_neither_torch_nor_the_tokenizer_classes(tokenizer: Any, tmp_path: Path) -> None:
    place = ChatTokenizer.of(tokenizer).save(tmp_path)
    program = (
        "import json, sys; from pathlib import Path; from engine.prep.token_rows import Counts; "
        "from engine.prep.tokenize import RowTokenizer; from engine.prep.templates import ChatTokenizer\n"
        f"done = RowTokenizer(ChatTokenizer.load(Path({str(place)!r})), 'assistant', 999)({CHATS!r}, Counts())\n"
        "print(json.dumps([done.columns['input_ids'][1], "
        "[name for name in ('torch', 'datasets', 'pandas') if name in sys.modules]]))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    lengths, loaded = json.loads(output)
    assert len(lengths) == 3 and loaded == []
