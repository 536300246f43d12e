"""The app in Chinese: every screen says its own words in it, fits, and opens anew when the language is changed."""

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
from tests.app.gallery import SIZES, dressed, resize
from tests.app.screen import assert_fits, run_app, screen_text, until
from tests.app.services import FakeServices

SAID = {
    "dashboard": ("运行中", "损失", "暂停"),
    "data": ("没有打开数据", "打开"),
    "profile": ("另存为", "内置"),
    "runs": ("失败", "状态"),
    "chat": ("尚未加载", "目标"),
}
"""Screen -> words that it shows at any size."""
ENGLISH = re.compile(r"\b(?:the|runs?|press|step|loss|with|Pause|Save|Stop|Filter)\b")
"""Words that no Chinese screen shows: what is still English has one of them sooner or later."""


@pytest.fixture
def chinese() -> Iterator[None]:
    set_language("zh")
    yield
    set_language("en")


async def test_every_screen_is_chinese_at_every_size(chinese: None, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    runs = [demo_run(), demo_run(id="poems-1119-1004-19ce", name="poems", state="failed", step=12)]
    with dressed("dark", home):
        async with run_app(FakeServices(*runs, text="抽取三元组"), SIZES[0], home) as pilot:
            for name, words in SAID.items():
                await pilot.app.action_go(name)  # type: ignore[attr-defined]
                for size in SIZES:
                    await resize(pilot, size)
                    await until(pilot, lambda words=words: words[0] in screen_text(pilot))  # type: ignore[misc]
                    assert all(word in screen_text(pilot) for word in words), (name, size)
                    assert_fits(pilot)
                await resize(pilot, SIZES[0])
            await pilot.app.action_go("dashboard")  # type: ignore[attr-defined]
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
