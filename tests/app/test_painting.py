"""What is written to the terminal: a terminal that gets it shows the screen, and it is no more than what changed."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.pilot import Pilot
from textual.strip import Strip

from cockpit.app import CockpitApp
from cockpit.frame import Frame, FrameUpdate
from cockpit.pen import Pen, find_looks
from cockpit.session import list_live
from engine.protocol.home import Home
from engine.protocol.messages import Run
from engine.supervisor.registry import Registry
from tests.app.fake import demo_run
from tests.app.screen import run_app, screen_text, until
from tests.app.services import FakeServices

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\\\")


def test_only_the_cells_of_a_span_are_written_and_none_twice() -> None:
    row = {0: Strip([Segment("abcdef"), Segment("ghij")]), 10: None, 15: Strip([Segment("klmno")])}
    frame = Frame()

    def write() -> str:
        update = ChopsUpdate([row], [(0, 4, 7), (0, 9, 17), (0, 19, 20)], [[10, 15, 20]])
        return FrameUpdate(update, frame).render_segments(Console())

    assert write() == "\x1b[1;5Hefg\x1b[1;10Hj\x1b[1;16Hkl\x1b[1;20Ho"
    assert write() == ""
    frame.forget()
    assert write() != ""


@pytest.mark.parametrize(
    ("before", "now", "written"),
    [
        ("抽取三元组", "抽取二元组", "\x1b[1;5H二"),
        ("ab抽取", "ab x取", "\x1b[1;3H x"),
        ("ab x取", "ab抽取", "\x1b[1;3H抽"),
        ("e\u0301tude", "e\u0300tude", "\x1b[1;1He\u0300"),
        ("same", "same", ""),
    ],
)
def test_no_half_of_a_wide_character_is_written(before: str, now: str, written: str) -> None:
    frame = Frame()
    for text in (before, now):
        strip = Strip([Segment(text)])
        update = LayoutUpdate([[strip]], Region(0, 0, strip.cell_length, 1))
        found = FrameUpdate(update, frame).render_segments(Console())
    assert found == written


@pytest.mark.parametrize(
    ("before", "now", "written"),
    [
        ([["e", "\u0301tude"]], [["e", "\u0301tudX"]], "\x1b[1;5HX"),
        ([["👩\u200d👩\u200d👧ab"]], [["👩\u200d👩\u200d👧aX"]], "\x1b[1;4HX"),
        ([["❤\ufe0fab"]], [["❤\ufe0faX"]], "\x1b[1;4HX"),
    ],
)
def test_what_has_no_cell_of_its_own_moves_nothing(before: list[list[str]], now: list[list[str]], written: str) -> None:
    frame = Frame()
    for rows in (before, now):
        strips = [Strip(list(map(Segment, row))) for row in rows]
        update = LayoutUpdate([[strip] for strip in strips], Region(0, 0, strips[0].cell_length, len(strips)))
        found = FrameUpdate(update, frame).render_segments(Console())
    assert found == written


def test_a_wide_character_that_a_dialog_has_cut_in_half_comes_back() -> None:
    frame = Frame()

    def write(row: dict[int, str], span: tuple[int, int], ends: list[int]) -> str:
        chops = {at: Strip([Segment(text)]) for at, text in row.items()}
        return FrameUpdate(ChopsUpdate([chops], [(0, *span)], [ends]), frame).render_segments(Console())

    write({0: "ab抽取cd"}, (0, 8), [8])
    assert write({0: "ab ", 3: "XX", 5: " cd"}, (3, 5), [3, 5, 8]) == "\x1b[1;4HXX"
    assert write({0: "ab抽取cd"}, (3, 5), [8]) == "\x1b[1;3H抽取"


@pytest.mark.parametrize("system", [ColorSystem.TRUECOLOR, ColorSystem.EIGHT_BIT, ColorSystem.STANDARD])
def test_looks_that_follow_each_other_are_those_that_rich_writes_one_by_one(system: ColorSystem) -> None:
    """Whatever comes after whatever: pyte shows the same, but for the colour of blanks."""
    colours = (None, "#f1b544", "#151b21", "red", "default")
    weights: tuple[dict[str, Any], ...] = ({}, {"bold": True}, {"italic": True}, {"underline": True}, {"reverse": True})
    choose = random.Random(7).choice
    styles = [
        Style(color=choose(colours), bgcolor=choose(colours), **choose(weights) | choose(weights)) for _ in range(400)
    ]
    pieces = [(choose(("a", " ", "─", " ")), choose((style, None))) for style in styles]
    pen = Pen(system)
    cells = [(text, find_looks(style)[text == " "]) for text, style in pieces]
    short = "".join(pen.write(cells)) + pen.lift()
    console = Console(color_system="truecolor", force_terminal=True)
    console._color_system = system
    long = Strip([Segment(text, style) for text, style in pieces]).render(console)
    assert len(short) < len(long)
    shown = []
    for text in (short, long):
        screen = pyte.Screen(len(pieces) + 1, 1)
        pyte.Stream(screen).feed(text + "z")
        row = [screen.buffer[0][x] for x in range(len(pieces) + 1)]
        shown.append([_bare(cell) if cell.data == " " else cell for cell in row])
    assert shown[0] == shown[1]


def _bare(cell: Any) -> Any:
    """A blank without what does not show on it."""
    inked = cell.reverse or cell.underscore or cell.strikethrough
    return cell if inked else cell._replace(fg="default", bold=False, italics=False)


class Terminal:
    """A terminal of pyte's that gets what the app writes, and counts its cells and those that it changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int, height: int) -> None:
        self.screen = pyte.Screen(width, height)
        self.stream = pyte.Stream(self.screen)
        self.drawn = self.changed = 0
        self.text = self.first = ""
        console = Console(color_system="truecolor", force_terminal=True)
        display = CockpitApp._display

        def write(app: CockpitApp, screen: Any, renderable: Any) -> None:
            display(app, screen, renderable)
            if isinstance(renderable, (ChopsUpdate, LayoutUpdate)) and not app._batch_count:
                text = FrameUpdate(renderable, app.frame).render_segments(console)
                before = self._cells()
                self.text += text
                self.stream.feed(text)
                self.drawn += cell_len(ESCAPES.sub("", text))
                self.changed += sum(one != other for one, other in zip(before, self._cells(), strict=True))
                self.first = self.first or "\n".join(self._lines())

        monkeypatch.setattr(CockpitApp, "_display", write)

    async def settle(self, pilot: Pilot[None]) -> None:
        """Wait until it shows what the app shows."""
        await until(pilot, lambda: self._lines() == [line.rstrip() for line in screen_text(pilot).splitlines()], 8)

    async def rest(self, pilot: Pilot[None]) -> None:
        """Wait until it shows what the app shows, and nothing more comes."""
        seen = -1
        while seen != len(self.text):
            seen = len(self.text)
            await self.settle(pilot)
            await pilot.pause(0.5)

    def _cells(self) -> list[Any]:
        size = range(self.screen.columns)
        return [self.screen.buffer[y][x] for y in range(self.screen.lines) for x in size]

    def _lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]


async def test_a_terminal_shows_the_screen_and_gets_no_more_than_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 120, 40)
    engine = FakeServices(demo_run(), demo_run(id="other", name="抽取三元组", state="failed"), devices=1)
    async with run_app(engine) as pilot:
        await terminal.settle(pilot)
        costs: dict[str, tuple[int, int]] = {}
        for keys in (["f1"], ["escape"], ["x"], ["escape"], ["colon"], ["escape"], ["4"], ["x"], ["escape"], ["1"]):
            drawn, changed = terminal.drawn, terminal.changed
            await pilot.press(*keys)
            await pilot.pause(0.4)
            await terminal.settle(pilot)
            costs[f"{len(costs)} {keys[0]}"] = terminal.drawn - drawn, terminal.changed - changed
        assert all(changed for _, changed in costs.values()), costs
        assert all(drawn <= 1.5 * changed + 50 for drawn, changed in costs.values()), costs
        seen = len(terminal.text)
        await pilot.press("f5")
        await until(pilot, lambda: len(terminal.text) - seen > 5_000)
        terminal.screen.reset()
        terminal.stream.feed(terminal.text[seen:])
        await terminal.settle(pilot)


@pytest.mark.parametrize(("size", "opening", "closing"), [((120, 40), 7_000, 12_000), ((200, 60), 11_000, 15_000)])
async def test_help_costs_few_bytes(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], opening: int, closing: int
) -> None:
    """On 50 kB/s, all of the help stands within 300 ms, and so does what it covered when it closes."""
    terminal = Terminal(monkeypatch, *size)
    async with run_app(FakeServices(demo_run(), devices=1), size) as pilot:
        await until(pilot, lambda: "step 31 loss" in screen_text(pilot))
        costs = []
        for key, budget in (("f1", opening), ("escape", closing)):
            await terminal.rest(pilot)
            seen = len(terminal.text)
            await pilot.press(key)
            await until(pilot, lambda: ("Esc closes" in screen_text(pilot)) == (key == "f1"))  # noqa: B023
            await terminal.rest(pilot)
            costs.append((len(terminal.text[seen:].encode()), budget))
        assert all(cost <= budget for cost, budget in costs), costs
        assert "Esc closes" in terminal.text


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], ["No runs yet.", "cockpit train PROFILE"]),
        ([demo_run(id="a-run", name="my-run", metrics={"train/loss": 0.125})], ["● running  my-run", "loss 0.125"]),
    ],
)
async def test_the_first_paint_has_what_the_user_comes_for_and_waits_for_no_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: list[Run], words: list[str]
) -> None:
    terminal = Terminal(monkeypatch, 120, 40)
    home = Home(tmp_path).create()
    registry = Registry(home.registry)
    for run in runs:
        home.run(run.id).path.mkdir()
        registry.store(run, 1)
    registry.close()

    async def connect(home: Home) -> None:
        await asyncio.Event().wait()

    async with CockpitApp(home, connect=connect).run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: terminal.first)
        for word in (*words, "1 Dashboard", "? Help", "◌ connecting"):
            assert word in terminal.first
        await pilot.press("p", "x")  # a run that no engine has confirmed is not steered
        assert not pilot.app.screen.is_modal
        assert list_live(pilot.app.state) == [run.id for run in runs], "what one is told who leaves now"
