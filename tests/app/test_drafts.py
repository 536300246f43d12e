"""Nothing that was typed is lost: drafts on disk, what leaving asks, and files that are not replaced unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from cockpit.connection import drafts
from cockpit.connection.drafts import Drafts
from cockpit.screens.chat import ChatScreen
from cockpit.screens.profile import ProfileScreen
from cockpit.widgets.chat_input import ChatInput
from cockpit.widgets.confirm import LeaveDialog
from cockpit.widgets.prompt import Prompt
from engine.protocol.home import Home
from tests.app.fake import demo_run
from tests.app.screen import HIGH, run_app, screen_text, until
from tests.app.services import FakeServices

MINE = "name: mine\nmodel: {base: smollm2-135m-instruct}\ndata: {train: [{source: rows.jsonl}]}\n"
LEFT_BEHIND = """
import sys
from cockpit.connection.drafts import Drafts
from engine.protocol.home import Home
from pathlib import Path
drafts = Drafts(Home(Path(sys.argv[1])), lambda *_: None)
drafts.keep(sys.argv[2], sys.argv[3], text=sys.argv[4], base="")
print("kept", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "profiles").mkdir(parents=True)
    (tmp_path / "home" / "profiles" / "mine.yaml").write_text(MINE)
    return Home(tmp_path / "home")


def keep(home: Home, later: Any = lambda seconds, call: None) -> Drafts:
    return Drafts(home, later)


def end_of_owner(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drafts there are of an app that has ended."""
    for path in home.drafts.glob("*.json"):
        path.rename(path.with_name(path.name.replace(f".{os.getpid()}-", f".{os.getpid()}-9")))
    monkeypatch.setattr(drafts.os, "getpid", lambda: 1)


# ── the files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_change_is_on_disk_at_once_and_private(home: Home) -> None:
    waiting: list[Any] = []
    mine = keep(home, lambda seconds, call: waiting.append(call))
    for text in ("a", "ab", "abc"):
        mine.keep(drafts.PROMPT, "", text=text)
    (path,) = home.drafts.iterdir()
    assert json.loads(path.read_text())["text"] == "a" and len(waiting) == 1
    assert path.stat().st_mode & 0o777 == 0o600 and home.drafts.stat().st_mode & 0o777 == 0o700
    waiting[0]()
    assert json.loads(path.read_text())["text"] == "abc"
    mine.drop(drafts.PROMPT, "")
    assert not list(home.drafts.iterdir())


def test_drafts_of_a_living_app_are_its_own_and_those_of_a_killed_one_are_taken_over_once(home: Home) -> None:
    command = [sys.executable, "-c", LEFT_BEHIND, str(home.root), "profile", "/x/a.yaml", "typed \udcff [/x]"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"kept\n"
    mine = keep(home)
    assert mine.take_over("profile") == []
    other.kill()
    other.wait()
    (draft,) = mine.take_over("profile")
    assert draft["text"] == "typed \udcff [/x]" and draft["key"] == "/x/a.yaml"
    assert keep(home).take_over("profile") == [] and len(list(home.drafts.iterdir())) == 1
    assert mine.kept() == [draft]


def test_damaged_drafts_and_a_disk_without_room_lose_nothing_and_end_nothing(home: Home) -> None:
    home.drafts.mkdir()
    for name, text in (("prompt-0.h.1-1.json", "{"), ("prompt-1.h.1-1.json", "[]"), ("prompt-x.json", "{}")):
        (home.drafts / name).write_text(text)
    mine = keep(home)
    assert mine.take_over("prompt") == [] and len(list(home.drafts.iterdir())) == 3
    told: list[str] = []
    blocked = keep(Home(home.root / "profiles" / "mine.yaml"))
    blocked.failed = told.append
    for text in ("a", "b"):
        blocked.keep("prompt", "", text=text)
    assert len(told) == 1 and "mine.yaml" in told[0]


# ── profiles ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def open_profile(pilot: Pilot[None]) -> ProfileScreen:
    screen = pilot.app.screen
    assert isinstance(screen, ProfileScreen)
    await until(pilot, lambda: screen.file is not None and screen.file.name == "mine")
    screen.editor.focus()
    await pilot.pause(0.05)
    return screen


async def test_an_edited_profile_comes_back_after_a_kill(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_app(FakeServices(), HIGH, home, first="profile") as pilot:
        screen = await open_profile(pilot)
        await pilot.press("#")
        assert len(list(home.drafts.glob("profile-*.json"))) == 1, "from the first keystroke"
        await pilot.press(*" hours of work")
        await pilot.pause(0.6)
    end_of_owner(home, monkeypatch)
    async with run_app(FakeServices(), HIGH, home, first="profile") as pilot:
        screen = await open_profile(pilot)
        await until(pilot, lambda: "hours of work" in screen.editor.text)
        assert "Unsaved edits" in screen_text(pilot) and "mine*" in screen_text(pilot)
        assert (home.root / "profiles" / "mine.yaml").read_text() == MINE
        await pilot.press("ctrl+s", "enter")
        await until(pilot, lambda: "hours of work" in (home.root / "profiles" / "mine.yaml").read_text())
        await until(pilot, lambda: not list(home.drafts.glob("profile-*")))


async def test_saving_asks_before_it_replaces_what_was_not_opened(home: Home) -> None:
    mine, other = home.root / "profiles" / "mine.yaml", home.root / "profiles" / "other.yaml"
    other.write_text("precious")
    async with run_app(FakeServices(), HIGH, home, first="profile") as pilot:
        screen = await open_profile(pilot)
        await pilot.press("#", "ctrl+s")
        await pilot.press("ctrl+u", *str(other), "enter")
        await until(pilot, lambda: "Replace the file?" in screen_text(pilot))
        await pilot.press("n")
        await until(pilot, lambda: pilot.app.screen is screen)
        mine.write_text("changed by somebody else")
        await pilot.press("ctrl+s", "enter")
        await until(
            pilot,
            lambda: (
                "It has changed on disk" in " ".join(screen_text(pilot).replace("│", " ").split())
                and "Replace" in screen_text(pilot)
            ),
        )
        await pilot.press("escape")
        assert other.read_text() == "precious" and mine.read_text() == "changed by somebody else"
        assert screen.editor.text.startswith("#")
        await pilot.press("ctrl+s", "enter", "y")
        await until(pilot, lambda: mine.read_text() == f"#{MINE}")
        # The copy of a built-in profile gets a name that is free.
        (home.root / "profiles" / "triples-qlora.yaml").write_text("my own copy")
        at = next(at for at, file in enumerate(screen.files) if file.name == "triples-qlora")
        screen.open(screen.files[at])
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(pilot.app.screen, Prompt))
        assert pilot.app.screen.query_one(Input).value.endswith("/triples-qlora-2.yaml")


# ── leaving ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("d", 0), ("ctrl+c", 1)])
async def test_leaving_with_unsaved_edits_asks(answer: str, left: int, home: Home) -> None:
    async with run_app(FakeServices(), HIGH, home, first="profile") as pilot:
        screen = await open_profile(pilot)
        await pilot.press("#", "tab", "escape", "q")
        await until(pilot, lambda: isinstance(pilot.app.screen, LeaveDialog))
        assert "the profile mine" in screen_text(pilot)
        await pilot.press("n")
        await until(pilot, lambda: not isinstance(pilot.app.screen, LeaveDialog))
        assert pilot.app.is_running and screen.editor.text.startswith("#")
        await pilot.press("ctrl+c")
        await until(pilot, lambda: isinstance(pilot.app.screen, LeaveDialog))
        await pilot.press(answer)
        await until(pilot, lambda: not pilot.app.is_running)
    assert len(list(home.drafts.glob("*.json"))) == left


async def test_ctrl_c_stops_a_reply_then_clears_the_line_then_asks(home: Home) -> None:
    engine = FakeServices(demo_run(), text="word")
    engine.pieces, engine.pace = 10_000, 0.02
    async with run_app(engine, HIGH, home, first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        box = screen.query_one(ChatInput)
        screen.load("model")
        await until(pilot, lambda: screen.targets and screen.targets[0].loaded)
        await pilot.press(*"hi", "enter")
        await until(pilot, lambda: screen.busy and screen.answer)
        await pilot.press(*"next")
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not screen.busy and screen.chat.turns[-1].is_answer)
        assert box.text == "next" and "word" in screen.chat.turns[-1].replies[0].text
        await pilot.press("ctrl+c")
        assert box.text == "" and pilot.app.is_running
        await pilot.press("ctrl+c")
        await until(pilot, lambda: isinstance(pilot.app.screen, LeaveDialog) and "a conversation" in screen_text(pilot))
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not pilot.app.is_running)


# ── conversations ─────────────────────────────────────────────────────────────────────────────────────────────────


async def talk(pilot: Pilot[None], text: str) -> ChatScreen:
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    if not screen.targets:
        screen.load("model")
        await until(pilot, lambda: screen.targets and screen.targets[0].loaded)
    await pilot.press(*text, "enter")
    await until(pilot, lambda: screen.chat.turns and screen.chat.turns[-1].is_answer and screen.answer is None)
    return screen


async def test_a_conversation_and_a_prompt_come_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_app(FakeServices(text="answer"), HIGH, home, first="chat") as pilot:
        screen = await talk(pilot, "first")
        turns = screen.chat.turns
        await pilot.press(*"half a que")
        await pilot.pause(0.6)
    end_of_owner(home, monkeypatch)
    async with run_app(FakeServices(text="answer"), HIGH, home, first="chat") as pilot:
        again = pilot.app.screen
        assert isinstance(again, ChatScreen)
        await until(pilot, lambda: again.query_one(ChatInput).text == "half a que")
        assert [turn.text for turn in again.chat.turns] == [turn.text for turn in turns]
        assert "answer" in screen_text(pilot) and "is back" in screen_text(pilot)
        assert [target.target for target in again.targets] == ["model"]


async def test_a_new_conversation_keeps_the_old_one(home: Home) -> None:
    async with run_app(FakeServices(text="answer"), HIGH, home, first="chat") as pilot:
        for _ in range(2):
            screen = await talk(pilot, "same words")
            await pilot.press("ctrl+n")
            await until(pilot, lambda screen=screen: not screen.chat.turns)
        assert sorted(path.name for path in home.chats.iterdir()) == ["same-words-2.json", "same-words.json"]
        assert not list(home.drafts.glob("chat-*"))


async def test_saving_a_conversation_asks_before_it_replaces_another(home: Home) -> None:
    home.chats.mkdir()
    (home.chats / "hello.json").write_text("precious")
    async with run_app(FakeServices(text="answer"), HIGH, home, first="chat") as pilot:
        screen = await talk(pilot, "hello")
        await pilot.press("ctrl+s", "enter")
        await until(pilot, lambda: "Replace the file?" in screen_text(pilot))
        await pilot.press("n")
        await until(pilot, lambda: pilot.app.screen is screen)
        assert (home.chats / "hello.json").read_text() == "precious"
        await pilot.press("ctrl+s", "2", "enter")
        await until(pilot, lambda: (home.chats / "hello2.json").exists() and not list(home.drafts.glob("chat-*")))
        await talk(pilot, "more")
        assert list(home.drafts.glob("chat-*"))
        await pilot.press("ctrl+s", "enter")  # its own file is not asked about
        await until(pilot, lambda: "more" in (home.chats / "hello2.json").read_text())
