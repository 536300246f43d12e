"""What is done with a reply in Chat: its tokens, what was sent for it, cases; and the system prompt, pasted texts and
tool calls."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Select, Static, TextArea

from cockpit.screens.chat import ChatScreen
from cockpit.state.acting import as_asked, describe_acting, read_settings
from cockpit.state.chat_tree import ChatReply, ChatTree, parse_tree
from cockpit.state.reply_format import parse_reply
from cockpit.state.token_scores import ScoredText, ScoredToken, describe_scores, format_probability, read_scores
from cockpit.state.tool_text import ToolCall, ToolResult, has_tools, split_tools
from cockpit.widgets.confirm import Confirm
from cockpit.widgets.prompt import Prompt
from cockpit.widgets.sampling import Sampling
from cockpit.widgets.text_dialog import TextDialog
from cockpit.widgets.token_dialog import TokenDialog
from cockpit.widgets.write_dialog import WriteDialog
from engine.protocol.home import Home
from engine.protocol.messages import RunChanged
from tests.app.fake import demo_run
from tests.app.screen import LOW, assert_fits, run_app, screen_text, until
from tests.app.services import FakeServices


def asked(engine: FakeServices, question: str) -> dict[str, Any]:
    """The arguments of the newest question of this kind."""
    found = [each for operation, each in engine.requests if operation == "service_ask"]
    arguments: dict[str, Any] = next(each.arguments for each in reversed(found) if each.question == question)  # type: ignore[attr-defined]
    return arguments


async def talk(pilot: Pilot[None], *targets: str) -> ChatScreen:
    """A conversation of one question and its answer; the answer is selected."""
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    for number, target in enumerate(targets):
        screen.load(target, beside=bool(number))
        await until(pilot, lambda at=number: len(screen.targets) > at and screen.targets[at].loaded)
    await pilot.press(*"why", "enter")
    await until(pilot, lambda: len(screen.chat.turns) == 2 and screen.answer is None)
    await pilot.press("escape")
    return screen


async def shown(pilot: Pilot[None], dialog: type, text: str = "") -> None:
    await until(pilot, lambda: isinstance(pilot.app.screen, dialog) and text in screen_text(pilot))


async def test_the_tokens_of_a_reply_and_of_a_pasted_text() -> None:
    engine = FakeServices(demo_run(), text="said")
    async with run_app(engine, LOW, first="chat") as pilot:
        screen = await talk(pilot, "model-1")
        await pilot.press("p")
        await shown(pilot, TokenDialog, "perplexity 21.12")
        given = asked(engine, "score")
        assert given["messages"] == [{"role": "user", "content": "why"}] and given["reply"] == "said said said "
        dialog = pilot.app.screen
        assert isinstance(dialog, TokenDialog) and dialog.at == 2, "the first one that surprises"
        assert "0.25 %" in screen_text(pilot) and "90.5 %" in screen_text(pilot) and "5.0 %" in screen_text(pilot)
        assert "1 surprises it" in screen_text(pilot) and "wrote them" in screen_text(pilot)
        assert_fits(pilot)
        for key, place in (("left", 1), ("home", 0), ("n", 2), ("h", 1), ("l", 2), ("N", 2), ("up", 1), ("up", 0),
                           ("j", 2), ("k", 1), ("down", 2), ("home", 0), ("end", 2), ("right", 2)):  # fmt: skip
            await pilot.press(key)
            assert dialog.at == place, key
        await pilot.press("home")
        await until(pilot, lambda: "so it has no probability" in screen_text(pilot))
        await pilot.press("escape", "P")
        await shown(pilot, WriteDialog)
        pilot.app.screen.query_one(TextArea).load_text("one\ntwo [/x]")
        await pilot.press("ctrl+s")
        await shown(pilot, TokenDialog, "The tokens of the text")
        assert asked(engine, "score")["text"] == "one\ntwo [/x]"
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is screen)


async def test_the_system_prompt_has_an_editor_and_what_acts_is_said() -> None:
    engine = FakeServices(demo_run(), text="said")
    async with run_app(engine, LOW, first="chat") as pilot:
        screen = await talk(pilot, "model-1", "model-2")
        assert "greedy · at most 256 tokens" in screen_text(pilot)
        await pilot.press("S")
        await shown(pilot, WriteDialog, "System prompt")
        await pilot.press(*"Be", "enter", *"brief", "ctrl+s")
        await until(pilot, lambda: "system prompt of 2 words · greedy" in screen_text(pilot))
        assert screen.query_one(Sampling).system == "Be\nbrief"
        await pilot.press("ctrl+g")  # the same from its field
        screen.query_one("#system").focus()
        await pilot.press("enter")
        await shown(pilot, WriteDialog, "brief")
        await pilot.press("escape", "ctrl+g", *"next", "enter")
        await until(pilot, lambda: len(screen.chat.turns) == 4 and screen.answer is None)
        assert asked(engine, "generate")["messages"][0] == {"role": "system", "content": "Be\nbrief"}
        # What was sent for a reply, and what would be for the input: with a task its own prompt, and the schema.
        await pilot.press("escape", "right", "w")
        await shown(pilot, TextDialog, "What model-2 gets")
        assert "▌system" in screen_text(pilot) and "max_new_tokens: 256" in screen_text(pilot)
        await pilot.press("escape", "S")
        await shown(pilot, WriteDialog, "brief")
        await pilot.press(*"er", "ctrl+s", "w")
        await shown(pilot, TextDialog, "What model-2 gets")
        assert "Be\nbrief\n" in str(pilot.app.screen._text), "it got the prompt of its time"  # type: ignore[attr-defined]
        await pilot.press("escape")
        screen.query_one("#task", Select).value = "triples"
        screen.query_one("#json", Select).disabled = False
        screen.query_one("#json", Select).value = "fits"
        await until(pilot, lambda: "task triples: its prompt alone is sent · JSON must fit" in screen_text(pilot))
        await pilot.press("up", "w")
        await shown(pilot, TextDialog, "▌user")
        text = str(pilot.app.screen._text)  # type: ignore[attr-defined]
        assert "schema of triples: the reply is kept to it" in text and '"subject"' in text and "next" in text
        assert "Be\nbrief" not in text


async def test_a_reply_is_kept_as_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = demo_run(name="mine", id="mine-1", state="completed")
    home = Home(tmp_path / "home")
    profile = home.root / "profiles" / "mine.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("# mine\nname: mine\ndata: {train: x.jsonl}\nmodel: {base: b}\n")
    engine = FakeServices(run, text="said")
    async with run_app(engine, home=home, first="chat") as pilot:
        await talk(pilot, "mine-1@25")
        for _ in range(2):  # the same probe is written once
            await pilot.press("a")
            await shown(pilot, Confirm, "“why” becomes")
            await pilot.press("p")
            await until(pilot, lambda: '"why"' in profile.read_text())
        assert profile.read_text().count("why") == 1 and profile.read_text().startswith("# mine")
        # The file is asked for once, and remembered.
        for wanted in ("cases", ""):
            await pilot.press("a")
            await shown(pilot, Confirm, "cases.jsonl" if not wanted else "an evaluation set")
            await pilot.press("e")
            await shown(pilot, WriteDialog, "The reference")
            await pilot.press(*"!", "ctrl+s")
            if wanted:
                await shown(pilot, Prompt)
                await pilot.press(*wanted, "enter")
            await until(pilot, lambda: "A case is added" in screen_text(pilot))
        given = asked(engine, "keep_row")
        assert (given["path"], given["run"]) == ("cases.jsonl", "mine-1")
        assert given["messages"] == [
            {"role": "user", "content": "why"},
            {"role": "assistant", "content": "said said said !"},
        ]
        assert "cases.jsonl" in home.settings.read_text()
        await pilot.press("a", "o")
        await until(pilot, lambda: isinstance(pilot.app.screen, WriteDialog))
        await pilot.press("escape")
    # Without a profile of one's own the setting is shown, to be put where it belongs.
    async with run_app(FakeServices(demo_run(), text="said"), first="chat") as pilot:
        await talk(pilot, "model-1")
        await pilot.press("a", "p")
        await shown(pilot, TextDialog, 'evaluation.probes: ["why"]')


async def test_a_stop_shows_at_once_and_a_run_that_ends_says_so_here() -> None:
    run = demo_run()
    engine = FakeServices(run, text="said")
    engine.pieces, engine.pace = 1000, 0.02
    async with run_app(engine, LOW, first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        screen.load(f"{run.id}@now")
        await until(pilot, lambda: screen.targets and screen.targets[0].loaded)
        await pilot.press(*"why", "enter")
        await until(pilot, lambda: screen.answer is not None and "said said" in screen_text(pilot))
        request, engine.cancelled = screen.targets[0].request, set()
        await pilot.press("escape")
        answer = screen.answer
        before = answer.replies[0].text if answer is not None else ""
        assert " stopped" in screen_text(pilot)
        if answer is not None:  # the worker has not heard of it yet
            answer.replies[0].write("more", 1)
            assert answer.replies[0].text == before
        await until(pilot, lambda: request in engine.cancelled and screen.answer is None)
        engine.say(RunChanged(run=demo_run(state="completed", step=50)))
        meter = screen.query_one("#meter", Static)  # a notification may lie over it
        await until(pilot, lambda: "the run is completed · ctrl+t picks" in str(meter.render()))
        await until(pilot, lambda: "triples-qlora is completed" in screen_text(pilot))
        assert isinstance(pilot.app.screen, ChatScreen)


async def test_a_file_of_elsewhere_a_watcher_and_a_long_text() -> None:
    async with run_app(FakeServices(demo_run()), LOW, first="chat", readonly=True) as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        await until(pilot, lambda: "Nothing loaded yet" in screen_text(pilot))
        tree = ChatTree().add_question("why").add_answer(0, [ChatReply("m", "so", {"settings": {"task": "nope"}})])
        screen.chat = tree
        await screen.conversation.show(tree)
        await pilot.press("escape", "w")
        await until(pilot, lambda: "there is no task 'nope'" in " ".join(screen_text(pilot).split()))
        assert screen.conversation.check_action("tokens", ()), "reading is not changing"
        assert not screen.conversation.check_action("case", ())
        words = tuple(ScoredToken(f"w{at} ", -0.1) for at in range(2500))
        dialog = TokenDialog("A text", ScoredText(words, 1.1, 0.1))
        pilot.app.push_screen(dialog)
        await shown(pilot, TokenDialog, "w0 w1 ")
        await pilot.press("end")
        await until(pilot, lambda: "w2499" in screen_text(pilot) and "token 2,500 of 2,500" in screen_text(pilot))
        assert "w1 " not in str(dialog.query_one("#tokens", Static).render())
        await pilot.press("up")
        assert 2400 < dialog.at < 2499
        dialog._select(2000)
        await pilot.press("up")
        assert dialog.at == 1999, "the line before is on another page"


# ── pure ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CALL = ToolCall("get_weather", {"city": "Paris"})
CALLS = [
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}',
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
    '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
    '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}',
    '{"name": "get_weather", "parameters": {"city": "Paris"}}',
]


@pytest.mark.parametrize("text", CALLS)
def test_a_call_is_found_in_whatever_form(text: str) -> None:
    assert split_tools(text) == [CALL]
    assert parse_reply(f"<think>Hm.</think>\n{text}").parts == (CALL,)
    if not text.startswith("{"):
        assert split_tools(f"Let me look.\n{text}")[:2] == ["Let me look.", CALL]


NO_CALLS = [
    *("", "plain", "<tool_call>no idea what this is</tool_call>", "[TOOL_CALLS] of Mistral"),
    *('{"name": "Ada", "born": 1815}', '{"name": "x", "arguments": "y", "more": {}}', "[1, 2]"),
    *("the mark <tool_call> is written so", "<tool_call>", "[" * 5000),
]


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert split_tools(text) == [text] and not has_tools(text)


@pytest.mark.parametrize("unit", ["<parameter=a>", "<arg_key>", "<arg_key>a</arg_key>", "<tool_call>", "<function=a>"])
def test_marks_without_an_end_are_read_in_no_time(unit: str) -> None:
    for begun in ("<tool_call><function=f>", "<tool_call>f"):
        before = time.process_time()
        split_tools(begun + unit * 20_000)
        assert time.process_time() - before < 2, "searched from each of them to the end, it takes a minute"


def test_a_conversation_with_tools_is_opened_and_shown_as_such() -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": '{"sun": true}'},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Mixed."},
    ]
    tree, _ = parse_tree(json.dumps(messages))
    assert parse_reply(tree.path[1].replies[0].text).parts == (CALL, CALL)
    assert split_tools(tree.path[2].text) == [ToolResult('{"sun": true}'), ToolResult("rain")]


def test_figures_of_scores() -> None:
    scores = read_scores({"tokens": [["a", None, []], ["b", -0.5, [["b", -0.5], ["c", None]]]], "perplexity": 1.65,
                          "nats": 0.5, "own": False})  # fmt: skip
    assert describe_scores(scores) == "1 token · perplexity 1.65 · 0.72 bits a token · 0 surprise it"
    assert scores.tokens[1].likeliest == (("b", -0.5),)
    broken = read_scores({"tokens": [["a", None, []]], "perplexity": None, "nats": None})
    assert "not finite" in describe_scores(broken)
    written = [format_probability(value) for value in (None, 1.0, 0.9996, 0.123, 0.0012, 1e-7, 0.0)]
    assert written == ["–", "100 %", "100 %", "12.3 %", "0.12 %", "1e-05 %", "0 %"]


def test_a_reply_keeps_the_prompt_that_it_was_written_under() -> None:
    tree = ChatTree(system="new").add_question("why")
    for facts, system in (({"system": "old"}, "old"), ({"system": ""}, ""), ({}, "new")):
        assert as_asked(tree, ChatReply("m", "so", facts)).system == system
    for settings in ("abc", 7, None, ["task"]):
        assert read_settings(ChatReply("m", "so", {"settings": settings})) == {}
    assert read_settings(ChatReply("m", "so", {"settings": {"task": "x"}})) == {"task": "x"}


def test_a_message_of_parts_with_calls_is_refused() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{}], "tool_calls": [call]}]
    with pytest.raises(ValueError, match="message 2 has no text"):
        parse_tree(json.dumps(messages))


def test_what_acts_in_a_line() -> None:
    assert describe_acting({}, "") == "greedy"
    settings = {"temperature": 0.8, "top_k": 40, "seed": 7, "stop": ["END", "x"], "max_new_tokens": 1}
    assert describe_acting(settings, "Be brief.") == (
        "system prompt of 2 words · temperature 0.8 · top-k 40 · seed 7 · stop END|x · at most 1 token"
    )
    assert describe_acting({"temperature": 0.0, "top_k": 40, "task": "thought_graph"}, "x") == (
        "task thought graph: its prompt alone is sent · JSON free · greedy"
    )
