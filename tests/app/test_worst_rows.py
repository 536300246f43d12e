"""The screen of the rows that a run learnt worst."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.screens.worst_rows import WorstRowsScreen, edit_command
from tests.app.fake import demo_run
from tests.app.screen import HIGH, LOW, assert_fits, run_app, screen_text, until
from tests.app.services import FakeServices


@pytest.mark.parametrize("size", [HIGH, LOW])
@pytest.mark.parametrize("first", ["runs", "data"])
async def test_w_lists_the_worst_rows(first: str, size: tuple[int, int], tmp_path: Path) -> None:
    engine = FakeServices(demo_run(id="demo-1"), text="上海 [b]answer[/b]")
    async with run_app(engine, size, first=first) as pilot:
        await until(pilot, lambda: pilot.app.state.selected)
        await pilot.press("w")
        await until(pilot, lambda: "400 rows" in screen_text(pilot))
        screen = pilot.app.screen
        assert isinstance(screen, WorstRowsScreen) and screen.run_id == "demo-1"
        assert "[b]answer[/b]" in screen_text(pilot) and "alike 90%" in screen_text(pilot)
        assert_fits(pilot)
        await pilot.press("t")
        await until(pilot, lambda: "latest loss first" in screen_text(pilot))
        await pilot.press("j", "d")
        await until(pilot, lambda: pilot.app.screen is not screen)
        await pilot.press("enter")
        await until(pilot, lambda: screen.listed)
        await pilot.press("h")
        await until(pilot, lambda: list(screen.listed.values()) == [0.5])
        asked = [message.arguments for name, message in engine.requests if name == "service_ask"]
        places = [[[screen.rows[1]["file"], 2]]] * 2  # by place: another row may have a number by now
        assert [each["placed"] for each in asked if "drop" in each] == places
        assert [each["weight"] for each in asked if "drop" in each] == [0.0, 0.5]
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is not screen)


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, ["vi", "+7", "a.jsonl"]),
        ({"EDITOR": " "}, ["vi", "+7", "a.jsonl"]),
        ({"EDITOR": "nano -w"}, ["nano", "-w", "+7", "a.jsonl"]),
        ({"EDITOR": "vi", "VISUAL": "/usr/bin/code"}, ["/usr/bin/code", "--wait", "--goto", "a.jsonl:7"]),
        ({"EDITOR": "hx"}, ["hx", "a.jsonl:7"]),
    ],
)
def test_the_editor_gets_the_line(environment: dict[str, str], command: list[str]) -> None:
    assert edit_command("a.jsonl", 7, environment) == command
