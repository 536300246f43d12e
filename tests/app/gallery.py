"""Captures of every screen in every look: for a test of what they show, and for the pictures of the documentation.

python -m tests.app.gallery [FOLDER]     every capture as SVG, else the best ones into docs/gallery
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from rich.terminal_theme import TerminalTheme
from textual import events
from textual.geometry import Size
from textual.pilot import Pilot

from cockpit.app import CockpitApp
from cockpit.language.translate import tr
from cockpit.screens import chat_targets
from cockpit.screens.chat import ChatScreen
from cockpit.screens.data import DataScreen
from cockpit.screens.doctor import DoctorScreen
from cockpit.screens.evaluations import EvaluationsScreen
from cockpit.screens.profile import ProfileScreen
from cockpit.widgets.chart import Chart
from cockpit.widgets.run_preview import RunPreview
from engine.protocol.home import Home
from tests.app.fake import demo_run
from tests.app.screen import run_app, screen_text
from tests.app.screen import until as wait_until
from tests.app.services import FakeServices

SIZES = ((120, 40), (60, 18), (80, 24), (200, 60))
LOOKS: dict[str, dict[str, str]] = {
    "dark": {},
    "light": {"theme": "cockpit-light"},
    "solarized": {"theme": "solarized-light"},
    "16 colours": {"TEXTUAL_COLOR_SYSTEM": "standard"},
    "16 colours light": {"TEXTUAL_COLOR_SYSTEM": "standard", "theme": "cockpit-light"},
    "NO_COLOR": {"NO_COLOR": "1"},
    "ASCII": {"ascii": "true"},
}
"""Look -> environment and settings."""
PROFILE = """\
name: my-triples
model:
  base: smollm2-135m-instruct
data:
  train: triples/train.jsonl
  split: {validation: 0.1}  # of the rows
adapter:
  kind: lora
  rank: 16
training:
  learning_rate: 3.0e-4
  epochs: 2
  micro_batch: 4
evaluation:
  every_steps: 25
"""
CHECKS = {
    "checks": [
        {"name": "python", "ok": True, "detail": "3.11"},
        {"name": "memory", "ok": True, "detail": "24 GB, of which 19 GB are free"},
        {"name": "nf4", "ok": False, "detail": "bitsandbytes does not load", "mend": "pip install bitsandbytes"},
        {"name": "driver", "ok": None, "detail": "none: training runs on the CPU"},
    ]
}
"""What the doctor finds."""


XTERM = TerminalTheme(
    (0, 0, 0),
    (229, 229, 229),
    [(0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229)],
    [(127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255), (255,) * 3],
)
"""The sixteen colours as xterm has them."""


async def until(pilot: Pilot[None], condition: Callable[[], Any]) -> None:
    """As the tests wait, but for as long as a screen with all its parts may take on a busy machine."""
    await wait_until(pilot, condition, 30)


class Shot(NamedTuple):
    """A screen, how one comes to it, what it says at any size, and whether all of it is there after a new size."""

    name: str
    open: Callable[[Pilot[None]], Awaitable[None]]
    says: tuple[str, ...]
    is_there: Callable[[Pilot[None]], bool] = lambda pilot: True


async def _dashboard(pilot: Pilot[None]) -> None:
    def is_complete() -> bool:
        charts = [each for each in pilot.app.screen.query(Chart) if each.region.area]
        return len(charts) > 1 and all(each.traces for each in charts) and "step 31" in screen_text(pilot)

    await until(pilot, is_complete)


async def _data(pilot: Pilot[None]) -> None:
    await _go(pilot, "data")
    assert isinstance(pilot.app.screen, DataScreen)


async def _profile(pilot: Pilot[None]) -> None:
    await _go(pilot, "profile")
    screen = pilot.app.screen
    assert isinstance(screen, ProfileScreen)
    await until(pilot, lambda: screen.editor.text and screen.form.fields)
    await until(pilot, lambda: "24 GB" in screen_text(pilot))  # of the forecast


async def _runs(pilot: Pilot[None]) -> None:
    await _go(pilot, "runs")
    await until(pilot, lambda: "poems" in screen_text(pilot))


def _preview_is_there(pilot: Pilot[None]) -> bool:
    return all(each.run_id for each in pilot.app.screen.query(RunPreview) if each.display)


async def _chat(pilot: Pilot[None]) -> None:
    await _go(pilot, "chat")
    assert isinstance(pilot.app.screen, ChatScreen)


async def _doctor(pilot: Pilot[None]) -> None:
    await _go(pilot, "doctor")
    await until(pilot, lambda: "bitsandbytes" in screen_text(pilot))
    await pilot.press("j", "j")  # to what fails


async def _metrics(pilot: Pilot[None]) -> None:
    await _go(pilot, "dashboard")
    await pilot.press("m")
    await until(pilot, lambda: "train/loss" in screen_text(pilot))


async def _results(pilot: Pilot[None]) -> None:
    await _go(pilot, "dashboard")
    await pilot.press("E")
    await until(pilot, lambda: isinstance(pilot.app.screen, EvaluationsScreen) and pilot.app.screen.view == "list")


async def _help(pilot: Pilot[None]) -> None:
    await _go(pilot, "dashboard")
    await pilot.press("f1")
    await until(pilot, lambda: tr("Esc closes") in screen_text(pilot))


async def _go(pilot: Pilot[None], name: str) -> None:
    while len(pilot.app.screen_stack) > 1:
        await pilot.app.pop_screen()
    await pilot.app.action_go(name)  # type: ignore[attr-defined]
    await until(pilot, lambda: pilot.app.current_mode == name)


SHOTS = (
    Shot("dashboard", _dashboard, ("triples-qlora", "loss")),
    Shot("data", _data, ("rows",)),
    Shot("profile", _profile, ("model",)),
    Shot("runs", _runs, ("poems", "loss"), _preview_is_there),
    Shot("chat", _chat, ("model", "f1 Help")),
    Shot("doctor", _doctor, ("Doctor",)),
    Shot("metrics", _metrics, ("loss",)),
    Shot("results", _results, ("Results",)),
    Shot("help", _help, ("Help", "Esc closes")),
)


async def examine(screen: DoctorScreen, *arguments: str) -> dict[str, Any]:
    return CHECKS


async def no_models(home: Home, link: Any = None) -> list[dict[str, Any]]:
    return []


@contextmanager
def dressed(look: str, home: Home) -> Iterator[None]:
    """Begin an app in this look within the block."""
    chosen = LOOKS[look]
    settings = {name: value for name, value in chosen.items() if name.islower()}
    home.create()
    home.settings.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    (home.root / "profiles").mkdir(exist_ok=True)
    (home.root / "profiles/my-triples.yaml").write_text(PROFILE)
    environment = {name: value for name, value in chosen.items() if name.isupper()}
    system = environment.pop("TEXTUAL_COLOR_SYSTEM", "truecolor")
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "LC_ALL", "LC_CTYPE", "LANG")}
    with (
        patch.dict(os.environ, kept | environment | {"TERM": "xterm-256color"}, clear=True),
        patch("textual.constants.COLOR_SYSTEM", system),
        patch("rich.console.SVG_EXPORT_THEME", XTERM),
        patch.object(chat_targets, "find_local_models", no_models),
        patch.object(DoctorScreen, "_ask_doctor", examine),
    ):
        yield


async def capture(
    look: str,
    take: Callable[[Shot, tuple[int, int], Pilot[None]], object],
    sizes: tuple[tuple[int, int], ...] = SIZES,
    shots: tuple[Shot, ...] = SHOTS,
    themes: tuple[str, ...] = (),
) -> None:
    """Call `take` at every screen in every size, in one app; in each of the themes, by default in the look's own."""
    runs = [
        demo_run(),
        demo_run(id="poems-1120-2210-77aa", name="poems", state="completed", step=50),
        demo_run(id="poems-1119-1004-19ce", name="poems", state="failed", reason="memory exhausted", step=12),
    ]
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        with dressed(look, home):
            async with run_app(FakeServices(*runs, text="Ada lived in London.", devices=2), sizes[0], home) as pilot:
                assert isinstance(pilot.app, CockpitApp)
                for shot in shots:
                    await shot.open(pilot)
                    for theme in themes or (pilot.app.theme,):
                        pilot.app.theme = theme
                        for size in sizes:
                            await resize(pilot, size)
                            await until(pilot, partial(is_whole, pilot, shot))
                            take(shot, size, pilot)
                    await resize(pilot, sizes[0])


def is_whole(pilot: Pilot[None], shot: Shot) -> bool:
    """Whether all of a screen is there, and the engine has not been silent because the machine is busy."""
    assert isinstance(pilot.app, CockpitApp)
    return pilot.app.state.connection == "attached" and shot.is_there(pilot)


async def resize(pilot: Pilot[None], size: tuple[int, int]) -> None:
    """As `pilot.resize_terminal`, which waits until every widget of a screen answers."""
    if pilot.app.screen.size != Size(*size):
        pilot.app._driver._size = Size(*size)  # type: ignore[union-attr]
        pilot.app.post_message(events.Resize(Size(*size), Size(*size)))
        await until(pilot, lambda: pilot.app.screen.size == Size(*size))
    seen = ""
    while seen != (seen := screen_text(pilot)):
        await pilot.pause(0.05)


async def write(folder: Path, looks: Any = LOOKS, sizes: Any = SIZES, shots: Any = SHOTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for look in looks:

        def take(shot: Shot, size: tuple[int, int], pilot: Pilot[None], look: str = look) -> None:
            name = f"{shot.name}-{size[0]}x{size[1]}-{look.replace(' ', '-')}.svg"
            (folder / name).write_text(pilot.app.export_screenshot(simplify=True), encoding="utf-8")

        await capture(look, take, sizes, shots)


BEST = {"dark": ("dashboard", "profile", "runs", "metrics"), "light": ("dashboard", "help")}
"""The captures in docs/gallery, at 120×40."""


async def write_best(folder: Path) -> None:
    for look, names in BEST.items():
        await write(folder, (look,), SIZES[:1], tuple(shot for shot in SHOTS if shot.name in names))


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(write(Path(sys.argv[1])))
    else:
        asyncio.run(write_best(Path(__file__).parents[2] / "docs/gallery"))
