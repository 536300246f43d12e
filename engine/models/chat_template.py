"""Renders conversations with a chat template, and finds out by trying what a template writes around a reply.

Training, chat, evaluation and serving render through `render`, so that they send the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from engine.models.template_metadata import read_metadata

Message = dict[str, Any]

OPEN, CLOSE = "<think>", "</think>"
"""The marks that most models write around a thought, and in which data sets keep thoughts within a reply."""
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold a thought, beside its content."""
_AFTER_THOUGHT = "\n" + CLOSE + "\n\n"
"""What ends a thought in a template that opens one and never writes one."""

_QUESTION, _REPLY, _THOUGHT = "qz1xv", "qz2xv", "qz3xv"
"""Texts that no template writes itself."""


# ── rendering ──────────────────────────────────────────────────────────────────────────────────────────────────────


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Any = None,
    *,
    reply_follows: bool,
    date: datetime | None = None,
) -> str:
    """The text of a conversation. With `reply_follows` it ends where the assistant's reply begins. `date` is what a
    template that writes the date takes for today.

    Raises whatever the template raises, and ValueError without a template or for an empty conversation.
    """
    more = _dated(date)
    messages, text = _adapt_calls(tokenizer, messages, tools, reply_follows, more)
    return _apply(tokenizer, messages, tools, reply_follows, more) if text is None else text


def encode(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Any = None,
    *,
    reply_follows: bool,
    date: datetime | None = None,
) -> list[int]:
    """The token ids of what `render` returns, as the tokenizer itself makes them."""
    ids: list[int]
    if date is not None:
        text = render(tokenizer, messages, tools, reply_follows=reply_follows, date=date)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return ids
    messages, _ = _adapt_calls(tokenizer, messages, tools, reply_follows, {})
    ids = tokenizer.apply_chat_template(
        list(messages), tools=tools, add_generation_prompt=reply_follows, return_dict=False
    )
    return ids


def _dated(date: datetime | None) -> dict[str, Any]:
    return {} if date is None else {"strftime_now": lambda form: date.strftime(form)}


def _apply(tokenizer: Any, messages: Sequence[Message], tools: Any, reply_follows: bool, more: dict[str, Any]) -> str:
    if more:  # transformers' method passes on no functions
        return _render_with(tokenizer, messages, tools, reply_follows, more)
    text: str = tokenizer.apply_chat_template(
        list(messages), tools=tools, tokenize=False, add_generation_prompt=reply_follows
    )
    return text


def _render_with(
    tokenizer: Any, messages: Sequence[Message], tools: Any, reply_follows: bool, more: dict[str, Any]
) -> str:
    from transformers.utils import chat_template_utils

    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = (template.get("tool_use") if tools else None) or template.get("default")
    known = [{key: value for key, value in message.items() if value is not None} for message in messages]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    compiled = chat_template_utils._compile_jinja_template(template)
    return str(
        compiled.render(
            messages=known, tools=tools, documents=None, add_generation_prompt=reply_follows, **special | more
        )
    )


def _adapt_calls(
    tokenizer: Any, messages: Sequence[Message], tools: Any, reply_follows: bool, more: dict[str, Any]
) -> tuple[Sequence[Message], str | None]:
    """The messages with their tool calls as the template expects them, and the text if it was rendered. Raises what
    the template raises on the messages as they are, if it takes them in no form."""
    if not any(message.get("tool_calls") for message in messages):
        return messages, None
    first: tuple[Sequence[Message], str] | Exception | None = None
    for variant in _call_variants(messages):
        try:
            text = _apply(tokenizer, variant, tools, reply_follows, more)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            first = first or error
            continue
        if writes_calls(variant, text):
            return variant, text
        if first is None or isinstance(first, Exception):
            first = variant, text
    if isinstance(first, Exception):
        raise first
    assert first is not None
    return first


def _call_variants(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The ways to write tool calls that templates expect: arguments as a mapping or as JSON text, and beside a call
    without words an empty content or none."""
    for as_text in (False, True):
        for as_none in (False, True):
            yield [_vary(message, as_text, as_none) for message in messages]


def _vary(message: Message, as_text: bool, as_none: bool) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        arguments = function.get("arguments")
        if as_text and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not as_text and isinstance(arguments, str):
            arguments = _parse(arguments)
        inner = {**function, "arguments": arguments}
        calls.append({**call, "function": inner} if function is not call else inner)
    content = message.get("content")
    return {**message, "content": content or (None if as_none else ""), "tool_calls": calls}


def _parse(arguments: str) -> Any:
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments


def writes_calls(messages: Sequence[Message], text: str) -> bool:
    """Whether the name of each called function stands in the text."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return all(str(call.get("function", call).get("name", "")) in text for call in calls)


# ── thoughts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def split_thought(content: str) -> tuple[str | None, str]:
    """The thought that a reply begins with, and the words behind it; (None, content) for a reply without a thought."""
    head = content.lstrip()
    if not head.startswith(OPEN) or CLOSE not in head:
        return None, content
    thought, _, words = head.removeprefix(OPEN).partition(CLOSE)
    return thought.strip("\n"), words.lstrip("\n")


class ThoughtStyle(NamedTuple):
    """How a template treats thoughts."""

    opening: str
    """What the prompt ends with, or ended with before `adapt_template`, to open a thought that the template does not
    write before a reply without one; empty if there is no such opening."""
    opens: bool
    """Whether the prompt ends by opening a thought."""
    closing: str
    """What follows the thought, up to the words of the reply."""
    key: str
    """The message key whose thought the template writes; empty if it writes none."""
    moved: bool
    """Whether a thought within the content must be moved to `key`: there the template would not know it as one."""


def find_thoughts(tokenizer: Any) -> ThoughtStyle:
    """Try how the tokenizer's template treats thoughts. A template that fails at this has none."""
    question = {"role": "user", "content": _QUESTION}
    try:
        prompt = render(tokenizer, [question], reply_follows=True)
        plain = _render_reply(tokenizer, question, {"content": _REPLY})
    except Exception:  # noqa: BLE001 - templates raise what they like
        return ThoughtStyle("", False, "", "", moved=False)
    key, written = "", ""
    for each in THOUGHT_KEYS:
        text = _try_reply(tokenizer, question, {"content": _REPLY, each: _THOUGHT})
        if _THOUGHT in text:
            key, written = each, text
            break
    within = _try_reply(tokenizer, question, {"content": f"{OPEN}\n{_THOUGHT}\n{CLOSE}\n\n{_REPLY}"})
    moved = bool(key) and OPEN in within and (OPEN not in written or within.count(OPEN) > written.count(OPEN))
    at = prompt.rfind(OPEN)
    opens = at >= 0 and not prompt[at + len(OPEN) :].strip()
    opening = prompt[at:] if opens and not plain.startswith(prompt) else ""
    if declared := read_metadata(tokenizer.chat_template).get("opened"):
        opening = json.loads(declared)
    between = written.partition(_THOUGHT)[2].partition(_REPLY)[0] if key else ""
    return ThoughtStyle(opening, opens, between if CLOSE in between else _AFTER_THOUGHT, key, moved)


def _render_reply(tokenizer: Any, question: Message, reply: Message) -> str:
    return render(tokenizer, [question, {"role": "assistant", **reply}], reply_follows=False)


def _try_reply(tokenizer: Any, question: Message, reply: Message) -> str:
    try:
        return _render_reply(tokenizer, question, reply)
    except Exception:  # noqa: BLE001 - templates raise what they like
        return ""


def adapt_template(tokenizer: Any, thinking: str) -> Any:
    """The chat template that a run with this `data.thinking` trains and chats with. It is the tokenizer's own, or, with
    `keep`, one that leaves out the thought which that opens before every reply."""
    template = tokenizer.chat_template
    if thinking != "keep" or not isinstance(template, str):
        return template
    found = find_thoughts(tokenizer)
    return _remove_opening(template, found.opening) if found.opens and found.opening else template


def _remove_opening(template: str, opening: str) -> str:
    """The template without the thought that it opens before a reply; all else that it renders is unchanged."""
    literal = json.dumps(opening)
    return (
        f"{{#- Opens no thought before a reply. opened: {literal} -#}}"
        f"{{% if add_generation_prompt %}}{{% set rendered %}}{template}{{% endset %}}"
        f"{{{{ rendered[:-{len(opening)}] if rendered.endswith({literal}) else rendered }}}}"
        f"{{% else %}}{template}{{% endif %}}"
    )


# ── ends of turns ──────────────────────────────────────────────────────────────────────────────────────────────────


class ReplyEnds(NamedTuple):
    """What a template writes behind a reply."""

    closing: str
    """The special tokens that end it; empty if there are none."""
    rest: str
    """What follows behind the last reply of a conversation, which the model never has to say."""
    opening: str
    """Without a `closing`: the special token that opens the next turn, and so ends the reply."""


def find_reply_ends(tokenizer: Any, special: Sequence[str], *, calls: bool = False) -> ReplyEnds:
    """Try what stands behind a reply, or with `calls` behind a tool call. `special` are the special tokens, the longest
    first. Everything is empty where the template refuses the trial or does not write the call."""
    question = {"role": "user", "content": _QUESTION}
    reply: Message = {"role": "assistant", "content": _REPLY}
    other: Message = {"role": "tool" if calls else "user", "content": _THOUGHT}
    if calls:
        reply |= {"content": "", "tool_calls": [{"type": "function", "function": {"name": _REPLY, "arguments": {}}}]}
    try:
        alone = render(tokenizer, [question, reply], reply_follows=False)
    except Exception:  # noqa: BLE001 - templates raise what they like
        return ReplyEnds("", "", "")
    _, found, after = alone.rpartition(_REPLY)
    if not found:
        return ReplyEnds("", "", "")
    closing, rest = split_closing(after, special) if calls else split_first_closing(after, special)
    if closing:
        return ReplyEnds(closing, rest, "")
    try:
        followed = render(tokenizer, [question, reply, other], reply_follows=False)
    except Exception:  # noqa: BLE001 - templates raise what they like
        return ReplyEnds("", "", "")
    body = alone.rstrip()
    behind = followed[len(body) :].lstrip() if followed.startswith(body) else ""
    return ReplyEnds("", "", next((each for each in special if behind.startswith(each)), ""))


def split_closing(text: str, special: Sequence[str]) -> tuple[str, str]:
    """The special tokens at the end of a reply's text, with no blank between two, and the blanks behind them."""
    body = text.rstrip()
    end = len(body)
    while token := next((each for each in special if body.endswith(each, 0, end)), ""):
        end -= len(token)
    return body[end:], text[len(body) :]


def split_first_closing(after: str, special: Sequence[str]) -> tuple[str, str]:
    """The first special tokens of the text behind a reply, with no blank between two, and what follows."""
    start = end = len(after) - len(after.lstrip())
    while token := next((each for each in special if after.startswith(each, end)), ""):
        end += len(token)
    return (after[:end], after[end:]) if end > start else ("", "")
