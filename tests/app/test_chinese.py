"""The app in Chinese: no English is left, and it opens anew when the language is changed. See also test_looks.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from cockpit.language.translate import current_language, set_language
from cockpit.painted_app import REOPEN
from engine.protocol.home import Home
from tests.app.fake import demo_run
from tests.app.gallery import SIZES, dressed
from tests.app.screen import run_app, screen_text, until
from tests.app.services import FakeServices

ENGLISH = re.compile(r"\b(?:the|runs?|press|step|loss|with|Pause|Save|Stop|Filter)\b")
"""Words that no Chinese screen shows: what is still English has one of them sooner or later."""


@pytest.fixture
def chinese() -> Iterator[None]:
    set_language("zh")
    yield
    set_language("en")


async def test_nothing_on_the_dashboard_is_english(chinese: None, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with dressed("dark", home):
        async with run_app(FakeServices(demo_run(), text="抽取三元组"), SIZES[0], home) as pilot:
            await until(pilot, lambda: "运行中" in screen_text(pilot))
            assert not ENGLISH.findall(_without_log(pilot))


def _without_log(pilot: Pilot[None]) -> str:
    """The dashboard's text but for what the run itself has printed."""
    return "\n".join(line for line in screen_text(pilot).splitlines() if "shard" not in line and "step 31" not in line)


async def test_f2_changes_the_language_and_the_app_opens_anew(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    async with run_app(FakeServices(demo_run()), SIZES[0], home) as pilot:
        await pilot.press("f2")
        await until(pilot, lambda: "中文" in screen_text(pilot))
        await pilot.press("down", "enter")
        await until(pilot, lambda: pilot.app.return_code == REOPEN)
    assert "language: zh" in home.settings.read_text().replace('"', "")
    assert current_language() == "en"  # until it is opened anew
