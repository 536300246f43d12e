"""The data screen: empty, and on real rows with the real data worker; and how rows look."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cockpit.screens.data import DataScreen
from cockpit.widgets import row_view
from engine.protocol.home import Home
from tests.app.fake import FakeEngine
from tests.app.screen import HIGH, LOW, RealEngine, assert_fits, opened, shown, until
from tests.scripted.bench import Engine

ROW = {"messages": [{"role": "user", "content": "上海在哪里？[b]"}, {"role": "assistant", "content": "长江入海口。"}]}
PROFILE = "name: wide\nmodel: {base: smollm2-135m-instruct}\ndata: {train: [{source: rows.jsonl}]}\n"


@pytest.fixture
def working(home: Home) -> Iterator[Home]:
    """An engine with the real workers, and a profile of its own."""
    folder = home.root / "profiles"
    folder.mkdir()
    (folder / "wide.yaml").write_text(PROFILE, encoding="utf-8")
    lines = [json.dumps(ROW, ensure_ascii=False)] * 3 + ["{broken"]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    engine = Engine(home, "engine.workers")
    yield home
    engine.close()


def test_trained_tokens_differ_by_more_than_colour() -> None:
    pieces = [{"text": "a\n", "id": 1, "trained": False}, {"text": "", "id": 2, "trained": True}]
    content = row_view.tokens(pieces)
    assert content.plain == "a↵\n◌"
    assert ["underline" in str(span.style) for span in content.spans] == [False, True]


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_without_a_profile_it_says_what_to_do(size: tuple[int, int]) -> None:
    async with opened(FakeEngine(), size, first="data") as pilot:
        assert "No data open" in shown(pilot) and "o picks a profile" in shown(pilot)
        assert_fits(pilot)


@pytest.mark.slow
async def test_rows_tokens_counts_and_rejects(working: Home) -> None:
    async with opened(RealEngine, HIGH, home=working, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        await pilot.press("o")
        await until(pilot, lambda: "Data of which profile" in shown(pilot))
        await pilot.press(*"wide", "enter")
        await until(pilot, lambda: "train" in screen.stats, 60)
        await until(pilot, lambda: "row 1 of 3" in shown(pilot))
        text = shown(pilot)
        assert "▌user" in text and "[b]" in text and "1 rejected" in text and "rows.jsonl:4" in text
        assert_fits(pilot)
        await pilot.press("l", "t")
        await until(pilot, lambda: "row 2 of 3" in shown(pilot) and " trained" in shown(pilot), 10)
        assert "<|im_end|>" in shown(pilot) and "context, not trained" in shown(pilot)
        numbers = screen.stats["train"]
        assert numbers["rows"] == 3 and 0 < numbers["trained_tokens"] < numbers["tokens"]
        await pilot.press("slash", *"99", "enter")
        await until(pilot, lambda: "row 3 of 3" in shown(pilot))
