"""From a data file to a profile that trains on it: the key T on Data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.profiles.yaml_edit import read_yaml
from cockpit.screens.data import DataScreen
from cockpit.screens.profile import ProfileScreen
from engine.config.profile import ProfileError, parse
from engine.protocol.home import Home
from tests.app.screen import HIGH, LOW, RealEngine, assert_fits, run_app, screen_text, until
from tests.app.services import FakeServices
from tests.scripted.bench import Engine


@pytest.mark.parametrize("size", [HIGH, LOW])
async def test_the_draft_says_what_a_launch_would_and_plus_raises_the_limit(
    size: tuple[int, int], tmp_path: Path
) -> None:
    home = Home(tmp_path / "home").create()
    (tmp_path / "My rows.jsonl").write_text('{"text": "a"}\n')
    async with run_app(FakeServices(), size, home=home, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        await pilot.press("T")
        await until(pilot, lambda: "o opens a data file first" in screen_text(pilot))
        screen.open(tmp_path / "My rows.jsonl")
        await until(pilot, lambda: screen.stats.get("train"))
        await pilot.press("T")
        await until(pilot, lambda: "4 of 59 rows are bad = 6.8 %, above 1 %" in screen_text(pilot).replace("│", ""))
        assert "+  raise the limit to 7 %" in screen_text(pilot)
        assert_fits(pilot)
        await pilot.press("r")
        await until(pilot, lambda: screen.part == "rejected")
        await pilot.press("T")
        await until(pilot, lambda: "raise the limit" in screen_text(pilot))
        await pilot.press("+")
        await until(pilot, lambda: "data.max_rejected is raised to 7 %" in screen_text(pilot))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(pilot.app.screen, ProfileScreen))
        written = home.root / "profiles" / "my-rows.yaml"
        assert read_yaml(written.read_text())["data"] == {"train": "my.jsonl", "max_rejected": 0.07}
        profile = pilot.app.screen
        assert isinstance(profile, ProfileScreen)
        await until(pilot, lambda: profile.file is not None and profile.file.path == written)


@pytest.fixture
def working(home: Home) -> Iterator[Home]:
    engine = Engine(home, "engine.workers", warm=True)
    yield home
    engine.close()


@pytest.mark.slow
async def test_a_file_becomes_a_profile_that_is_valid_but_for_its_bad_rows(working: Home, tmp_path: Path) -> None:
    rows = [{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}. " * (1 + n % 7)} for n in range(55)]
    lines = [*map(json.dumps, rows), *['{"instruction": 3}'] * 4]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    async with run_app(RealEngine, HIGH, home=working, first="data") as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        screen.open(tmp_path / "sums.jsonl")
        await until(pilot, lambda: "train" in screen.stats, 60)
        await pilot.press("T")
        await until(pilot, lambda: "Train on sums" in screen_text(pilot), 60)
        await pilot.press("y")
        await until(pilot, lambda: isinstance(pilot.app.screen, ProfileScreen))
    path = working.root / "profiles" / "sums.yaml"
    text = path.read_text()
    with pytest.raises(ProfileError, match="4 of 59 rows are bad"):
        parse(text, "sums.yaml", path.parent, home=working, rows=True)
    profile = parse(text, "sums.yaml", path.parent, ["data.max_rejected=0.07"], working, rows=True)
    assert profile.model.base == "smollm2-135m-instruct" and profile.method.kind == "sft"
    assert profile.data.train[0].format == "alpaca" and profile.data.max_length == 128
    assert profile.data.split is not None and profile.data.split.validation == 0.1
    assert profile.evaluation.task is None
