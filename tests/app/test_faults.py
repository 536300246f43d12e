"""An exception of the app: it is shown and logged, the app goes on, and an app that has to end says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.app import ComposeResult
from textual.css.query import NoMatches
from textual.pilot import Pilot
from textual.screen import ModalScreen, Screen
from textual.widgets import OptionList, Static

from cockpit import app as app_module
from cockpit import fault_guard, session
from cockpit.app import CockpitApp
from cockpit.screens.dashboard import DashboardScreen
from cockpit.screens.doctor import DoctorScreen
from cockpit.screens.fault import FaultScreen
from cockpit.screens.runs import RunsScreen
from cockpit.widgets.chart import Chart
from cockpit.widgets.key_bar import KeyBar
from cockpit.widgets.picker import Choice, Picker
from engine.protocol.home import Home
from tests.app.fake import FakeEngine, demo_run
from tests.app.screen import HIGH, LOW, run_app, screen_text, until

WORDS = "no such row [/x]\x1b[31m"


def fail(*_: Any, **__: Any) -> Any:
    raise TypeError(WORDS)


async def fail_later(*_: Any) -> Any:
    raise TypeError(WORDS)


async def call_from(screen: Screen[Any], way: str) -> None:
    """Have `fail` called by the screen in one of the ways in which Textual calls code."""
    match way:
        case "timer":
            screen.set_timer(0.01, fail)
        case "worker":
            screen.run_worker(fail_later())
        case "thread":
            screen.run_worker(fail, thread=True)
        case "callback":
            screen.call_later(fail)
        case "refresh":
            screen.call_after_refresh(fail)


WAYS = ("timer", "worker", "thread", "callback", "refresh", "action", "receive", "child")


async def cause(way: str, pilot: Pilot[None], engine: FakeEngine, patched: pytest.MonkeyPatch) -> None:
    screen = pilot.app.screen
    match way:
        case "action":
            patched.setattr(DashboardScreen, "action_copy", fail)
            await pilot.press("c")
        case "receive":
            received = iter((fail,))  # the first message; another one, such as a silence of the engine's, may follow
            patched.setattr(DashboardScreen, "receive", lambda *_: next(received, lambda: None)())
            engine.say(demo_run(step=33))
        case "child":
            screen.query_one(Chart).call_later(fail)
        case _:
            await call_from(screen, way)


async def test_an_exception_is_shown_and_the_screen_works_on(
    monkeypatch: pytest.MonkeyPatch, faults: list[str], tmp_path: Path
) -> None:
    home, engine, copied = Home(tmp_path / "home"), FakeEngine(demo_run()), []
    monkeypatch.setattr(fault_guard, "AGAIN", 0.0)
    monkeypatch.setattr(CockpitApp, "copy_to_clipboard", lambda app, text: copied.append(text))
    async with run_app(engine, LOW, home) as pilot:
        screen = pilot.app.screen
        for at, way in enumerate(WAYS):
            with monkeypatch.context() as patched:
                await cause(way, pilot, engine, patched)
                await until(pilot, lambda: isinstance(pilot.app.screen, FaultScreen))
            await until(pilot, lambda: "no such row [/x]␛[31m" in screen_text(pilot))
            assert "code app.fault" in screen_text(pilot) and "Esc goes back to where you were" in screen_text(pilot)
            await pilot.press("c")
            assert "Traceback" in copied[-1] and "\x1b" not in copied[-1]
            await pilot.press("escape")
            await until(pilot, lambda: pilot.app.screen is screen)
            await pilot.press("y")  # the screen's pump and the chart's go on
            await until(pilot, lambda log=not at % 2: (" log ─╯" in screen_text(pilot)) == log)
    assert len(faults) == len(WAYS) == (home.root / "app.log").read_text().count("Traceback")
    assert (home.root / "app.log").stat().st_mode & 0o777 == 0o600
    faults.clear()


BROKEN: dict[str, tuple[type, str]] = {
    "compose": (RunsScreen, "compose_body"),
    "mount": (RunsScreen, "on_mount"),
    "show": (RunsScreen, "show_list"),
    "render": (Static, "render"),
    "layout": (Static, "get_content_height"),
    "bar": (KeyBar, "render"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_screen_that_cannot_be_drawn_is_left_and_made_anew(
    how: str, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    owner, name = BROKEN[how]
    async with run_app(FakeEngine(demo_run()), LOW, first="doctor" if how == "bar" else "dashboard") as pilot:
        original = getattr(owner, name)

        def broken(self: Any, *arguments: Any) -> Any:
            return fail() if isinstance(self.screen, RunsScreen) else original(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, broken)
            await pilot.press("4")
            await until(pilot, lambda: isinstance(pilot.app.screen, FaultScreen))
            await pilot.pause(0.1)
            assert "no such row" in screen_text(pilot)
            for _ in range(3):  # it may fail once more when it is shown again
                await pilot.press("escape")
                await pilot.pause(0.3)
                if isinstance(pilot.app.screen, DashboardScreen | DoctorScreen):
                    break
            await until(pilot, lambda: isinstance(pilot.app.screen, DashboardScreen | DoctorScreen))
        await pilot.press("4")
        await until(pilot, lambda: "sorted by" in screen_text(pilot))
        await until(pilot, lambda: "● running" in screen_text(pilot))
    assert faults
    faults.clear()


class BrokenDialog(ModalScreen[str | None]):
    def compose(self) -> Any:
        yield Static(WORDS)  # which Textual reads as markup


async def test_a_dialog_that_cannot_be_drawn_is_called_off(faults: list[str]) -> None:
    answers: list[Any] = []
    async with run_app(FakeEngine(demo_run()), LOW) as pilot:

        async def ask() -> None:
            answers.append(await pilot.app.push_screen_wait(BrokenDialog()))

        pilot.app.run_worker(ask())
        await until(pilot, lambda: isinstance(pilot.app.screen, FaultScreen))
        await pilot.press("escape")
        await until(pilot, lambda: answers == [None] and isinstance(pilot.app.screen, DashboardScreen))
        await pilot.press("4")
        await until(pilot, lambda: pilot.app.current_mode == "runs")
    faults.clear()


async def test_an_answer_for_a_dialog_that_was_closed_is_no_fault(faults: list[str]) -> None:
    class Dialog(ModalScreen[None]):
        def compose(self) -> ComposeResult:
            yield Static("asking")

    async with run_app(FakeEngine(demo_run())) as pilot:
        closed, open_ = Dialog(), Dialog()
        for dialog in (closed, open_):
            pilot.app.push_screen(dialog)
            await pilot.pause()

        async def answer(dialog: Dialog) -> None:
            dialog.query_one("#later", Static)

        async def ask(dialog: Dialog) -> None:
            try:
                await answer(dialog)
            except NoMatches as error:
                pilot.app.catch(error)  # type: ignore[attr-defined]

        pilot.app.pop_screen()
        await until(pilot, lambda: open_._closed)
        await ask(open_)
        assert not faults
        await ask(closed)
        assert len(faults) == 1 and "#later" in faults[0]
        faults.clear()


async def test_other_screens_are_a_digit_away_from_the_page(faults: list[str]) -> None:
    async with run_app(FakeEngine(demo_run()), LOW) as pilot:
        pilot.app.screen.call_later(fail)
        await until(pilot, lambda: isinstance(pilot.app.screen, FaultScreen))
        await pilot.press("4")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunsScreen))
        await pilot.press("1")
        await until(pilot, lambda: isinstance(pilot.app.screen, DashboardScreen))
    faults.clear()


async def test_many_exceptions_are_one_page_and_a_short_log(faults: list[str], tmp_path: Path) -> None:
    home = Home(tmp_path)
    async with run_app(FakeEngine(demo_run()), LOW, home) as pilot:
        for _ in range(200):
            pilot.app.screen.call_later(fail)
        await until(pilot, lambda: "more since then" in screen_text(pilot))
        await pilot.pause(0.5)
        assert len(pilot.app.screen_stack) == 2
    assert (tmp_path / "app.log").read_text().count("Traceback") <= 30
    faults.clear()


async def test_a_home_that_cannot_be_written_shows_the_page_all_the_same(faults: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with run_app(FakeEngine(demo_run()), LOW, Home(tmp_path / "file")) as pilot:
        pilot.app.screen.call_later(fail)
        await until(pilot, lambda: isinstance(pilot.app.screen, FaultScreen))
    faults.clear()


def test_an_app_that_has_to_end_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, faults: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine(demo_run())

    class Headless(CockpitApp):
        CSS_PATH = str(Path(app_module.__file__).with_name("cockpit.tcss"))

        def __init__(self, home: Home, **options: Any) -> None:
            super().__init__(home, **options, connect=engine.connect)

        def run(self, **_: Any) -> None:
            super().run(headless=True, size=HIGH)

    monkeypatch.setattr(session, "CockpitApp", Headless)
    monkeypatch.setattr(FaultScreen, "compose", fail)
    monkeypatch.setattr(DashboardScreen, "on_mount", fail)
    assert session.run(Home(tmp_path)) == 1
    assert "The app had to end" in capsys.readouterr().err
    assert "no such row" in (tmp_path / "app.log").read_text()
    faults.clear()


async def test_a_click_on_what_was_just_removed_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_app(FakeEngine(demo_run()), LOW) as pilot:
        chart = pilot.app.screen.query_one(Chart)
        await until(pilot, lambda: pilot.app.screen.get_widget_at(chart.region.x + 4, chart.region.y + 4)[0] is chart)
        x, y = chart.region.x + 4, chart.region.y + 4
        pointer = {"widget": None, "x": x, "y": y, "delta_x": 0, "delta_y": 0, "button": 1}
        with monkeypatch.context() as removed:
            removed.setattr(chart, "_parent", None)  # the last layout still has it
            for event in (events.MouseDown, events.MouseMove):
                await pilot.app.on_event(event(**pointer, shift=False, meta=False, ctrl=False))


async def test_a_page_key_in_a_list_without_room_does_nothing() -> None:
    async with run_app(FakeEngine()) as pilot:
        pilot.app.push_screen(Picker("title", "filter", [Choice(each, "") for each in "abc"], start=1))
        await until(pilot, lambda: isinstance(pilot.app.screen, Picker) and pilot.app.screen.query(OptionList))
        listing = pilot.app.screen.query_one(OptionList)
        listing.styles.height = 0
        await until(pilot, lambda: listing.option_count == 3 and not listing.scrollable_content_region)
        listing.action_page_down()
        assert listing.highlighted == 1
