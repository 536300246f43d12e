"""The chat screen, on a real engine whose chat worker is scripted: it repeats what was said."""

from __future__ import annotations

import pytest
from textual.widgets import Log, Markdown

from cockpit.screens.chat import ChatScreen
from cockpit.widgets.conversation import Reply
from tests.app.fake import FakeEngine
from tests.app.screen import HIGH, LOW, RealEngine, assert_fits, opened, shown, until
from tests.scripted.bench import Engine


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_pick_talk_stop_and_clear(size: tuple[int, int], engine: Engine) -> None:
    async with opened(RealEngine, size, home=engine.home, first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        assert "Nothing loaded yet" in shown(pilot) and "ctrl+t" in shown(pilot)
        assert_fits(pilot)
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "pulled on first use" in shown(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "ready after" in shown(pilot), 15)
        await pilot.press(*"one 二", "ctrl+j", *"two", "enter")
        await until(pilot, lambda: "tok/s" in shown(pilot) and not screen.request)
        assert [turn["content"] for turn in screen.messages] == ["one 二\ntwo", "one 二 two "]
        assert "first after 0.10 s" in shown(pilot)
        assert_fits(pilot)
        await pilot.press(*"long", "enter")
        await until(pilot, lambda: "more more" in shown(pilot))
        await pilot.press("escape")
        await until(pilot, lambda: "stopped" in shown(pilot))
        assert len(screen.messages) == 4
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "Ready." in shown(pilot))
        assert screen.messages == []
        screen.load("broken")
        await until(pilot, lambda: "broken is no model" in shown(pilot))
        assert "→ cockpit model find" in shown(pilot)
        service = screen.worker.id
    listed = engine.client.request("hello").services
    assert service not in [each.id for each in listed], "leaving the app ends its chat worker"


async def test_a_fast_reply_is_plain_lines_until_it_is_whole() -> None:
    async with opened(FakeEngine(), first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        reply = Reply()
        await screen.conversation.add(reply)
        reply.write("a *bold* word\n" * 500, 5000)
        await until(pilot, lambda: reply.query(Log))
        await reply.finish(reply.text, "5000 tokens")
        assert not reply.query(Log)
        assert reply.query_one(Markdown).source == reply.text


async def test_a_json_reply_is_set_out_and_nothing_of_it_is_cut_off() -> None:
    text = (
        '[{"subject": "Marie Curie", "predicate": "studied at", "object": "a university with a very long name indeed"}]'
    )
    async with opened(FakeEngine(), size=LOW, first="chat") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        for said in (text, text[:-1]):  # the second is not whole: it is shown as it came
            reply = Reply()
            await screen.conversation.add(reply)
            reply.write(said, 30)
            await reply.flush()
            await reply.finish(said, "30 tokens")
            assert reply.text == said
        await until(
            pilot, lambda: '"predicate": "studied at",\n' in screen.query(Reply).first().query_one(Markdown).source
        )
        await until(pilot, lambda: shown(pilot).count("very long name indeed") == 2)
        assert_fits(pilot)
