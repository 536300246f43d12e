"""Tool calls: what a family's own template writes is read back, however the reply is cut into pieces."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jinja2
import pytest
from starlette.responses import JSONResponse

from engine.serving.jobs import Job, JobEnd
from engine.serving.request_schemas import ChatRequest, RequestError, parse_body
from engine.serving.response_schemas import ResponseWriter
from engine.serving.streams import ChoiceUpdate
from engine.serving.tool_calls import FAMILIES, REQUIRED, ToolCallReader, find_family, require

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
NAMES = {"weather": SCHEMA, "now": {}}
CALLS: list[tuple[str, dict[str, Any]]] = [("weather", {"city": '北京 "}]</tool', "days": 3}), ("now", {})]
PLAIN: list[tuple[str, dict[str, Any]]] = [("weather", {"city": "007", "days": 3})]
"""Values that need no quoting, for templates that write them bare."""

HERMES = (
    '{% for c in calls %}<tool_call>\n{"name": "{{ c[0] }}", "arguments": {{ c[1] | json }}}\n</tool_call>'
    "{% if not loop.last %}\n{% endif %}{% endfor %}"
)
CODER = (
    "{% for c in calls %}<tool_call>\n<function={{ c[0] }}>\n{% for k, v in c[1].items() %}<parameter={{ k }}>\n{{ v }}"
    "\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
)
GLM = (
    "{% for c in calls %}<tool_call>{{ c[0] }}\n{% for k, v in c[1].items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>"
    "{{ v }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
)
MISTRAL = (
    '[TOOL_CALLS][{% for c in calls %}{"name": "{{ c[0] }}", "arguments": {{ c[1] | json }}}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]"
)
MISTRAL_NEW = "{% for c in calls %}[TOOL_CALLS]{{ c[0] }}[ARGS]{{ c[1] | json }}{% endfor %}"
LLAMA = '{"name": "{{ calls[0][0] }}", "parameters": {{ calls[0][1] | json }}}{# <|python_tag|> #}'
TEMPLATES = [
    ("hermes", HERMES, CALLS, "Let me look."),
    ("hermes", CODER, PLAIN, "Let me look."),
    ("hermes", GLM, PLAIN, ""),
    ("mistral", MISTRAL, CALLS, ""),
    ("mistral", MISTRAL_NEW, CALLS, "Well:"),
    ("llama", LLAMA, CALLS[:1], ""),
]


def render(template: str, calls: Any) -> str:
    environment = jinja2.Environment()
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template).render(calls=calls)


def read(family: Any, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    reader = ToolCallReader(family, NAMES)
    got = [reader.feed(piece) for piece in pieces] + [reader.finish()]
    calls = [call for _, calls in got for call in calls]
    assert len({call.id for call in calls}) == len(calls) and all(len(call.id) >= 9 for call in calls)
    return "".join(text for text, _ in got), [(call.name, json.loads(call.arguments)) for call in calls]


def cut(text: str, seed: int) -> list[str]:
    places = sorted(random.Random(seed).choices(range(len(text) + 1), k=8))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize(("name", "template", "calls", "before"), TEMPLATES)
def test_what_a_template_writes_is_read_back(name: str, template: str, calls: Any, before: str) -> None:
    family = find_family({"default": "", "tool_use": template})
    assert family and family.name == name
    reply = f"{before}\n\n{render(template, calls)}" if before else render(template, calls)
    for seed in range(40):
        assert read(family, cut(reply, seed)) == (before, calls), seed
    if family.short_ids:
        reader = ToolCallReader(family, NAMES)
        reader.feed(reply)
        assert all(len(call.id) == 9 and call.id.isalnum() for call in reader.finish()[1])


@pytest.mark.parametrize("family", [*FAMILIES, REQUIRED], ids=lambda family: family.name)
def test_what_is_no_call_stays_the_text_that_was_written(family: Any) -> None:
    opening, closing = family.opening, family.closing
    texts = [
        " plain text\n\n",
        "",
        '{"name": "unknown", "arguments": {}}',
        "{ broken",
        f'{opening}{{"name": "weather", "arguments": {{"city": "B',
        f"{opening}[]{closing} and more ",
        f'a {opening}{{"name": "weather", "arguments": 3}}{closing}',
        opening[:-1],
        "[" * 5000,
    ]
    for text in texts:
        for seed in range(5):
            assert read(family, cut(text, seed)) == (text, [])


@pytest.mark.parametrize(
    ("family", "reply", "arguments"),
    [
        (
            "hermes",
            '<tool_call>{"name": "weather", "arguments": {"city": "[ARGS]<arg_key><function=x>"}}</tool_call>',
            1,
        ),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>', 1),
        ("hermes", "<tool_call>now\n</tool_call>", 0),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "[TOOL_CALLS][ARGS]"}', 1),
    ],
)
def test_arguments_may_hold_anything(family: str, reply: str, arguments: int) -> None:
    reader = ToolCallReader(next(each for each in FAMILIES if each.name == family), NAMES)
    _, calls = reader.feed(reply)
    (call,) = calls + reader.finish()[1]
    assert len(json.loads(call.arguments)) == arguments
    JSONResponse(call.body())


@pytest.mark.parametrize(
    "inside",
    [
        '{"name": "weather", "arguments": {"days": NaN}}',
        '{"name": "weather", "arguments": {"days": 1e999}}',
        '{"name": "weather", "arguments": ' + "[" * 500 + "]" * 500 + "}",
        '{"name": "weather", "arguments": {"days": ' + "[" * 900 + "]" * 900 + "}}",
        "[" * 900 + "]" * 900,
        "<function=weather><parameter=city>Rome</function>",
        "<function=weather>" + "<parameter=city>" * 10_000,
        "<function=" * 20_000,
        "weather" + "<arg_key></arg_key><arg_value>" * 5_000,
        "weather<arg_key>city</arg_key>Rome<arg_value></arg_value>",
    ],
)
def test_hostile_replies_stay_text_and_take_no_time(inside: str) -> None:
    reply, began = f"<tool_call>{inside}</tool_call>", time.process_time()
    text, calls = read(FAMILIES[1], [reply])
    assert time.process_time() - began < 2  # the loop that answers all clients waits meanwhile
    assert (text == reply and not calls) or calls[0][0] == "weather"


@pytest.mark.parametrize("template", [CODER, GLM])
def test_a_call_that_is_cut_off_is_no_call(template: str) -> None:
    whole = render(template, PLAIN).removesuffix("</tool_call>")
    for end in range(len(whole) - len("</function>\n")):
        assert read(FAMILIES[1], [whole[:end]]) == (whole[:end], [])


def test_a_value_is_text_where_it_may_be() -> None:
    kinds = {
        "a": {"type": ["string", "null"]},
        "b": {"enum": ["1", 2]},
        "c": {"type": ["integer"]},
        "d": {"type": "string"},
    }
    reply = "<tool_call>f" + "".join(
        f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in zip("abcd", "1111", strict=True)
    )
    reader = ToolCallReader(FAMILIES[1], {"f": {"properties": kinds}})
    ((call,),) = (reader.feed(reply + "</tool_call>")[1],)
    assert json.loads(call.arguments) == {"a": "1", "b": "1", "c": 1, "d": "1"}


def test_a_call_is_streamed_when_it_is_complete_and_whole_and_streamed_are_equal() -> None:
    family = FAMILIES[1]
    reply = "Look.\n" + render(HERMES, CALLS)
    job = Job([1], None, 0.0)  # type: ignore[arg-type]

    def make() -> ResponseWriter:
        return ResponseWriter(True, "m", lambda: ToolCallReader(family, NAMES))

    (whole,) = make().whole([ChoiceUpdate(0, reply, ended=JobEnd("stop"))], [job])["choices"]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", "Look.")
    writer, pieces = make(), []
    for piece in cut(reply, 1):
        pieces += writer.pieces(ChoiceUpdate(0, piece))
    assert any("tool_calls" in piece["delta"] for piece in pieces), "the first call does not wait for the end"
    pieces += writer.pieces(ChoiceUpdate(0, ended=JobEnd("stop")))
    streamed = [call for piece in pieces for call in piece["delta"].get("tool_calls", [])]
    assert [call["index"] for call in streamed] == [0, 1]
    assert [call["function"] for call in streamed] == [call["function"] for call in whole["message"]["tool_calls"]]
    assert pieces[-1]["finish_reason"] == "tool_calls"
    (cut_off,) = make().whole([ChoiceUpdate(0, reply[:-20], ended=JobEnd("length"))], [job])["choices"]
    assert cut_off["finish_reason"] == "length"


def test_tool_choice() -> None:
    def parse(**fields: Any) -> ChatRequest:
        request = parse_body(json.dumps({"messages": [], "tools": TOOLS} | fields).encode(), ChatRequest)
        assert isinstance(request, ChatRequest)
        return request

    assert parse().uses_tools() and parse().schema() is None
    assert not parse(tool_choice="none").uses_tools()
    both = parse(tool_choice="required").schema()
    assert both and [each["properties"]["name"]["const"] for each in both["anyOf"]] == ["weather", "now"]
    one = parse(tool_choice={"type": "function", "function": {"name": "weather"}}).schema()
    assert one and one["properties"]["arguments"] == SCHEMA
    definitions = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "integer"}}}
    assert require([{"function": {"name": "f", "parameters": definitions}}], None)["$defs"] == definitions["$defs"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tool_choice": "sometimes"}, "tool_choice is auto, none"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "none of the tools"),
        ({"tool_choice": "required", "tools": []}, "goes with tools"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\] needs function.name"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "does not go with"),
    ]
    for fields, why in wrong:
        with pytest.raises(RequestError, match=why):
            parse(**fields).schema()
