"""The chat screen, on a real engine whose chat worker is scripted: it repeats what was said."""

from __future__ import annotations

import json

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Log, Markdown, Select, Tree

from cockpit.screens.chat import ChatScreen
from cockpit.state.chat_tree import ChatReply
from cockpit.widgets.chat_turns import Answer, Question
from cockpit.widgets.reply import Reply
from cockpit.widgets.reply_views import OutlineView, TableView, Thinking
from cockpit.widgets.sampling import Sampling
from tests.app.fake import FakeEngine
from tests.app.screen import HIGH, LOW, RealEngine, assert_fits, run_app, screen_text, until
from tests.scripted.bench import Engine

SIZES = pytest.mark.parametrize("size", [HIGH, LOW])


def chat_of(pilot: Pilot[None]) -> ChatScreen:
    assert isinstance(pilot.app.screen, ChatScreen)
    return pilot.app.screen


async def load(pilot: Pilot[None], *targets: str) -> ChatScreen:
    screen = chat_of(pilot)
    for number, target in enumerate(targets):
        screen.load(target, beside=bool(number))
        await until(pilot, lambda at=number: len(screen.targets) > at and screen.targets[at].loaded, 15)
    return screen


async def say(pilot: Pilot[None], *keys: str) -> None:
    """Type, send, and wait for the answer."""
    screen, before = chat_of(pilot), len(chat_of(pilot).chat.turns)
    await pilot.press(*keys, "enter")
    await until(pilot, lambda: len(screen.chat.turns) > before + 1 and screen.answer is None)
    await pilot.pause(0.1)


def texts(screen: ChatScreen) -> list[str]:
    return [turn.replies[0].text.strip() if turn.is_answer else turn.text for turn in screen.chat.path]


async def test_pick_talk_stop_and_clear(engine: Engine) -> None:
    async with run_app(RealEngine, LOW, home=engine.home, first="chat") as pilot:
        screen = chat_of(pilot)
        assert "Nothing loaded yet" in screen_text(pilot) and "^t Target" in screen_text(pilot)
        assert_fits(pilot)
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "downloaded on first use" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "ready after" in screen_text(pilot), 15)
        await say(pilot, *"one 二", "ctrl+j", *"two")
        assert texts(screen) == ["one 二\ntwo", "one 二 two"]
        assert "first after 0.10 s" in screen_text(pilot)
        assert_fits(pilot)
        await pilot.press(*"long", "enter")
        await until(pilot, lambda: "more more" in screen_text(pilot))
        assert "^x Stop" in screen_text(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: "stopped" in screen_text(pilot))
        assert len(screen.chat.turns) == 4 and "^x Stop" not in screen_text(pilot)
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "Ready." in screen_text(pilot))
        assert not screen.chat.turns
        screen.load("broken")
        await until(pilot, lambda: "broken is no model" in screen_text(pilot))
        assert "→ cockpit model find" in screen_text(pilot)
        service = screen.targets[0].worker.id
    listed = engine.client.request("hello").services
    assert service not in [each.id for each in listed], "leaving the app ends its chat worker"


async def test_edit_and_again_are_branches(engine: Engine) -> None:
    async with run_app(RealEngine, LOW, home=engine.home, first="chat") as pilot:
        screen = await load(pilot, "model-1")
        await say(pilot, *"one")
        await say(pilot, *"two")
        await pilot.press("escape", "up", "up", "up", "e")
        await until(pilot, lambda: "editing: Enter" in screen_text(pilot))
        await say(pilot, "s")
        assert texts(screen) == ["ones", "ones"]
        await pilot.press("escape", "up")
        await until(pilot, lambda: "2/2" in screen_text(pilot) and "[ ] Branch" in screen_text(pilot))
        await pilot.press("left_square_bracket")
        await until(pilot, lambda: "1/2" in screen_text(pilot))
        assert texts(screen) == ["one", "one", "two", "one | one | two"]
        await pilot.press("down", "r")
        await until(pilot, lambda: len(screen.chat.turns) == 7 and screen.answer is None)
        await until(pilot, lambda: "2/2 · " in screen_text(pilot))
        assert texts(screen) == ["one", "one"] and screen.chat.position(6) == (2, 2)
        assert_fits(pilot)
        # Saved, and opened by an app that has no target yet: with all branches.
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "Save the conversation" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: (engine.home.chats / "one.json").exists())
        saved = screen.chat
    assert json.loads((engine.home.chats / "one.json").read_text())["targets"] == ["model-1"]
    async with run_app(RealEngine, LOW, home=engine.home, first="chat") as pilot:
        screen = chat_of(pilot)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: "7 turns" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "loads with the next message" in screen_text(pilot))
        assert screen.chat == saved
        await say(pilot, *"three")
        assert texts(screen)[-1] == "one | one | three"


async def test_replies_are_shown_as_what_they_are(engine: Engine) -> None:
    async with run_app(RealEngine, HIGH, home=engine.home, first="chat") as pilot:
        screen = await load(pilot, "model-1")
        for word, kind in (("triples", TableView), ("graph", OutlineView), ("json", Tree), ("think", Thinking)):
            await pilot.press("ctrl+n")
            await say(pilot, *word)
            await until(pilot, lambda kind=kind: screen.query(Reply).last().query(kind))
            assert_fits(pilot)
            assert "{" not in screen_text(pilot).replace("{4 keys}", "").replace("{1 key}", "")
        assert "First I think" not in screen_text(pilot) and "thinking · 5 words" in screen_text(pilot)
        await pilot.press("escape", "enter", "enter")
        await until(pilot, lambda: "First I think" in screen_text(pilot))
        await pilot.press("escape", "v")
        await until(pilot, lambda: "<think>First" in screen_text(pilot))


async def test_a_fast_reply_is_plain_lines_until_it_is_whole() -> None:
    async with run_app(FakeEngine(), first="chat") as pilot:
        answer = await chat_of(pilot).conversation.begin(["m"], [0], False)
        reply = answer.reply_of(0)
        reply.write("a *bold* word\n" * 500, 5000)
        await until(pilot, lambda: reply.query(Log))
        await reply.finish(ChatReply("m", reply.text, {"tokens": 5000}))
        assert not reply.query(Log)
        assert reply.query_one(Markdown).source == reply.text


async def test_a_reply_that_fails_costs_nothing_that_was_said(engine: Engine) -> None:
    async with run_app(RealEngine, home=engine.home, first="chat") as pilot:
        screen = await load(pilot, "model-1")
        await say(pilot, *"one")
        await pilot.press(*"fail", "enter")
        await until(pilot, lambda: "as it was told to" in screen_text(pilot))
        assert texts(screen) == ["one", "one", "fail"] and "✗ The model failed" in screen_text(pilot)
        await say(pilot, *"two")  # in the failed question's place
        assert texts(screen) == ["one", "one", "two", "one | one | two"]
        # Beside another target the failure is that target's column alone.
        screen.load("model-2", beside=True)
        await until(pilot, lambda: len(screen.targets) == 2 and screen.targets[1].loaded)
        await say(pilot, *"fail")
        left, right = screen.chat.path[-1].replies
        assert left.facts == {"problem": "The model failed"} and right.text.strip().endswith("fail")
        assert "✗ The model failed" in screen_text(pilot)


@SIZES
async def test_two_targets_side_by_side_differ_word_by_word(size: tuple[int, int], engine: Engine) -> None:
    async with run_app(RealEngine, size, home=engine.home, first="chat") as pilot:
        screen = await load(pilot, "model-1", "model-2")
        await say(pilot, *"what was said")
        (_, answer) = screen.chat.path
        assert [(reply.target, reply.text.strip()) for reply in answer.replies] == [
            ("model-1", "what was said"),
            ("model-2", "what was other"),
        ]
        replies = screen.query_one(Answer).replies
        marked = [str(reply.query_one(".body > Static").render().markup) for reply in replies]  # type: ignore[attr-defined]
        assert "underline" in marked[0].split("was ")[1] and "underline" not in marked[0].split("was ")[0]
        await until(pilot, lambda: screen_text(pilot).count("1 word new") == (2 if size == HIGH else 1))
        assert "A model-1" in screen_text(pilot) and "B model-2" in screen_text(pilot)
        assert_fits(pilot)
        # Each goes on from what it said itself.
        await say(pilot, *"and")
        assert [reply.text.strip() for reply in screen.chat.path[-1].replies] == [
            "what was said | what was said | and",
            "what was other | what was other | and",
        ]
        await pilot.press("escape", "right")
        await until(pilot, lambda: screen.conversation.reply is screen.query(Answer).last().replies[1])
        assert "other" in screen_text(pilot)
        await pilot.press("d")
        await until(pilot, lambda: "words new" not in screen_text(pilot).splitlines()[-5])
        await pilot.press("x")
        await until(pilot, lambda: len(screen.targets) == 1)
        assert screen.targets[0].target == "model-1" and "b Blind" not in screen_text(pilot)


async def test_blind_votes_and_ratings_are_kept(engine: Engine) -> None:
    async with run_app(RealEngine, HIGH, home=engine.home, first="chat") as pilot:
        screen = await load(pilot, "model-1", "model-2")
        await pilot.press("escape", "b", "i")
        await say(pilot, *"it was said")
        assert "model-" not in screen_text(pilot) and "tok/s" not in screen_text(pilot)
        await until(
            pilot, lambda: "Which is better?" in screen_text(pilot) and "< Left is better" in screen_text(pilot)
        )
        assert_fits(pilot)
        order = screen.chat.path[-1].blind
        assert sorted(order) == [0, 1]
        await pilot.press("less_than_sign")
        await until(pilot, lambda: screen.chat.path[-1].vote == "left")
        better = f"model-{order[0] + 1}"
        await until(pilot, lambda: f"{'AB'[order[0]]} {better} ✓" in screen_text(pilot))
        await until(pilot, lambda: f"left  {better} 1 : 0" in screen_text(pilot))
        (kept,) = [json.loads(line) for line in engine.home.votes.read_text().splitlines()]
        assert kept["targets"] == [f"model-{at + 1}" for at in order]
        assert kept["vote"] == "left" and kept["prompt"] == "it was said"
        await pilot.press("escape", "s")
        await until(pilot, lambda: "excellent" in screen_text(pilot))
        await pilot.press("4")
        await until(pilot, lambda: "★★★★☆" in screen_text(pilot))
        await pilot.press("t")
        await until(pilot, lambda: "4.0 of 5 · 1 rating" in screen_text(pilot) and "Blind votes" in screen_text(pilot))


async def test_keys_are_offered_only_where_they_do_something(engine: Engine) -> None:
    async with run_app(RealEngine, home=engine.home, first="chat") as pilot:
        screen = await load(pilot, "model-1")
        await say(pilot, *"hello")
        await pilot.press("escape")
        await until(pilot, lambda: "s Rate" in screen_text(pilot))
        foot = screen_text(pilot).splitlines()[-1]
        assert "e Edit" not in foot and "Branch" not in foot and "Differences" not in foot and "Blind" not in foot
        await pilot.press("up")
        await until(pilot, lambda: "e Edit" in screen_text(pilot).splitlines()[-1])
        assert "s Rate" not in screen_text(pilot).splitlines()[-1]
        assert isinstance(screen.conversation.selected, Question)
        await pilot.press("question_mark")
        await until(pilot, lambda: "Esc closes" in screen_text(pilot))
        assert "Select the next turn." in screen_text(pilot) and "Show the totals of" in screen_text(pilot)


async def test_sampling_says_what_does_not_hold_and_follows_presets(engine: Engine) -> None:
    async with run_app(RealEngine, home=engine.home, first="chat") as pilot:
        screen = await load(pilot, "model-1")
        panel = screen.query_one(Sampling)
        assert panel.settings() == {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 256}
        panel.query_one("#preset", Select).value = "chat"
        await pilot.pause()
        panel.query_one("#stop", Input).value = "END|\\n"
        assert (
            panel.settings() | {"top_k": 40, "top_p": 0.9, "temperature": 0.8, "stop": ["END", "\\n"]}
            == panel.settings()
        )
        panel.query_one("#top_k", Input).value = "7"
        await pilot.pause()
        assert panel.query_one("#preset", Select).value == Select.NULL
        panel.query_one("#top_p", Input).value = "2"
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: "top-p: should be less than or equal to 1" in screen_text(pilot))
        assert not screen.chat.turns


async def test_a_run_that_trains_answers_and_says_what_it_cost(engine: Engine) -> None:
    run = engine.submit(steps=10_000)
    engine.wait_step(run, 3)
    async with run_app(RealEngine, LOW, home=engine.home, first="chat") as pilot:
        screen = chat_of(pilot)
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "the newest weights" in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "the newest weights answer" in screen_text(pilot))
        panel = screen.query_one(Sampling)
        await until(pilot, lambda: panel.chosen_task == "triples", 5)  # what the run was trained for
        await say(pilot, *"hot")
        assert screen.chat.path[-1].replies[0].target == f"{run.id}@now"
        await until(pilot, lambda: "delayed training by 0.25 s" in screen_text(pilot))
        assert_fits(pilot)
        await pilot.press(*"long", "enter")
        await until(pilot, lambda: "more more" in screen_text(pilot))
        await pilot.press("escape")
        await until(pilot, lambda: "stopped" in screen_text(pilot))
    assert engine.show(run).run.state == "running"
    async with run_app(RealEngine, LOW, home=engine.home, first="chat", readonly=True) as pilot:
        chat_of(pilot).load(f"{run.id}@now")
        await until(pilot, lambda: "This cockpit is read-only" in screen_text(pilot))
