"""`:` finds actions and things, fuzzily, recent ones first; and keys that the user has chosen."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from textual.command import CommandPalette

from cockpit import screens
from cockpit.app import CockpitApp
from cockpit.keymap import WIDGETS, check_keys, read_keys
from cockpit.screens.base import CockpitScreen
from cockpit.screens.chat import ChatScreen
from cockpit.screens.finder import find_letters, rate
from cockpit.screens.profile import ProfileScreen
from cockpit.screens.runs import RunsScreen
from engine.protocol.home import Home
from tests.app.fake import demo_run
from tests.app.gallery import PROFILE
from tests.app.screen import run_app, screen_text, until
from tests.app.services import FakeServices


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home").create()
    (home.root / "profiles").mkdir(exist_ok=True)
    (home.root / "profiles/poems.yaml").write_text(PROFILE)
    return home


async def test_things_are_found_and_recent_ones_come_first(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    talked: list[str] = []
    monkeypatch.setattr(ChatScreen, "load", lambda screen, name: talked.append(name))
    runs = [demo_run(), *(demo_run(id=f"other-{at:04}", name="other", state="completed") for at in range(300))]
    async with run_app(FakeServices(*runs), home=home) as pilot:
        app = pilot.app

        async def find(word: str, shown: str) -> None:
            await pilot.press("ctrl+p", *word)
            await until(pilot, lambda: re.search(shown, screen_text(pilot)), 8)
            await pilot.press("enter")
            await until(pilot, lambda: not isinstance(app.screen, CommandPalette))

        await find("other0299", "other-0299")
        await until(pilot, lambda: app.state.selected == "other-0299")  # type: ignore[attr-defined]
        await find("poems", r"profile · home")
        await until(pilot, lambda: isinstance(app.screen, ProfileScreen) and app.screen.file)
        screen = app.screen
        assert isinstance(screen, ProfileScreen)
        await until(pilot, lambda: screen.file and screen.file.name == "poems" and screen.form.fields, 20)
        await find("learning_rate", "setting ·")
        await until(pilot, lambda: screen.form.current == "training.learning_rate", 20)
        await find("caf25", r"checkpoint ·")
        await until(pilot, lambda: talked == ["triples-qlora-1121-0526-0caf@25"])
        await pilot.press("ctrl+p")
        await until(pilot, lambda: "checkpoint · talk" in screen_text(pilot))
        lines = screen_text(pilot).splitlines()
        listed = [next(at for at, line in enumerate(lines) if name in line) for name in ("0caf@25", "learning_rate")]
        assert listed == sorted(listed)


async def test_a_run_with_markup_in_its_name_is_found_as_it_is_written(home: Home) -> None:
    async with run_app(FakeServices(demo_run(id="run-1", name="[/x] [b]poems[/b]")), home=home) as pilot:
        await pilot.press("ctrl+p", *"run1")
        await until(pilot, lambda: "[/x] [b]poems[/b]" in screen_text(pilot))


async def test_the_user_chooses_keys_and_is_told_of_conflicts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(CockpitApp, "notify", lambda app, message, **options: told.append(message))
    home.settings.write_text("keys:\n  runs.filter: ctrl+f\n  runs.pause: P\n  runs.stop: q\n  runs.fitler: f\n")
    async with run_app(FakeServices(demo_run()), (200, 40), home=home, first="runs") as pilot:
        await until(pilot, lambda: told)
        assert "did you mean runs.filter?" in told[0] and "q is runs.stop and also app.detach" in told[0]
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        assert " P Pause" in screen_text(pilot).splitlines()[-1]
        await pilot.press("ctrl+f")
        await until(pilot, lambda: screen.query_one("#filter").has_class("-open"))
        await pilot.press("escape", "f1")
        await until(pilot, lambda: "^f  Filter the runs" in screen_text(pilot))


def test_what_is_wrong_with_a_keymap_is_named() -> None:
    assert not list(
        check_keys({"runs.filter": "x", "runs.stop": "X", "runs.export": "f9", "app.help": "f12"}, CockpitApp)
    )
    assert "runs.stop" in "".join(check_keys({"runs.filter": "x"}, CockpitApp))
    assert "ctrl+p keeps its meaning" in "".join(check_keys({"runs.filter": "ctrl+p"}, CockpitApp))
    assert "also app.focus_next" in "".join(check_keys({"runs.filter": "tab"}, CockpitApp))
    assert "runs.from_step on its screen" in "".join(check_keys({"app.help": "f"}, CockpitApp))
    for wrong in ("hold shift", "holdshift", "ctrl+K", "hold+k"):
        assert "is not a key" in "".join(check_keys({"runs.filter": wrong}, CockpitApp)), wrong
    assert read_keys({"a.b": " P , f9,", "a.c": 3, "a.d": " , "}) == {"a.b": "P,f9"}


def test_the_keys_of_every_screen_can_be_chosen() -> None:
    for module in pkgutil.iter_modules(screens.__path__):
        importlib.import_module(f"cockpit.screens.{module.name}")
    known = {place.partition(":")[2] for place in (*WIDGETS, *(place for _, place in screens.SCREENS.values()))}
    left: list[type[CockpitScreen]] = [CockpitScreen]
    named: set[str] = set()
    while left:
        each = left.pop()
        left += each.__subclasses__()
        if not each.__subclasses__() and each.__module__.startswith("cockpit."):
            named.add(each.__name__)
    assert named and not named - known


def test_letters_are_found_close_together_and_in_no_time() -> None:
    assert list(find_letters("caf25", "triples-1121-0caf@25")) == [14, 15, 16, 18, 19]
    assert list(find_letters("rate", "separate learning_rate")) == [18, 19, 20, 21]
    assert find_letters("learning rate", "training.learning_rate")[0] == 9
    assert rate("runs", "Runs") > rate("runs", "runs-1") > rate("runs", "r-u-n-s") > 0 == rate("runs", "snur")
    assert not rate("rns", "runs", scattered=False) and not rate("", "runs") and not rate("a" * 30 + "b", "a" * 90)
    assert len(find_letters("a" * 30, "a " * 60)) == 30  # all ways to choose them would take for ever
