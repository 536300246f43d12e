"""The doctor screen: what works on this machine, what does not, and how to fix it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.widgets import OptionList, Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.widgets.confirm import Confirm
from engine.protocol.client import build_engine_environment
from engine.protocol.messages import ProblemError

Found = dict[str, Any]
"""A check as the doctor prints it."""

MARKS = {True: ("✓", "bold $text-success"), False: ("✗", "bold $text-error"), None: ("–", "$text-warning")}
"""Result -> mark. None is for information that no job depends on."""
STRESS_SECONDS = 30
NAME = 11
"""Cells of a check's name."""


def describe(check: Found, *, chosen: bool = False) -> Content:
    """Mark, name and result of a check, and below it how to fix the problem. Where it is `chosen`, all of it has the
    colour of the cursor's text."""
    mark, style = MARKS[check["ok"]]
    name = f"{check['name']:<{NAME}} "
    parts: list[Any] = [(mark, "" if chosen else style), " ", (name, "bold"), tr_engine(check["detail"])]
    if check.get("mend"):
        colour = "bold" if chosen else "bold $text-warning"
        parts += ["\n  ", " " * (NAME + 1), (f"→ {tr_engine(check['mend'])}", colour)]
    return Content.assemble(*parts)


def replace(checks: list[Found], names: set[str], fresh: list[Found]) -> list[Found]:
    """The checks with those of these names replaced, in their places; those of new names at the end."""
    found: list[Found] = []
    left = list(fresh)
    for check in checks:
        if check["name"] not in names:
            found.append(check)
            continue
        same = [each for each in left if each["name"] == check["name"]]
        found += same
        left = [each for each in left if each not in same]
    return found + left


class DoctorScreen(CockpitScreen):
    HELP_TEXT = """
    Each check is a real trial: it trains a small quantized layer, for example, or lets processes add numbers.
    ✓ works · ✗ a requirement fails, with the command that fixes it · – information only.
    """
    DEFAULT_CSS = """
    DoctorScreen #verdict { height: 1; padding: 0 1; background: $surface; }
    DoctorScreen OptionList, DoctorScreen OptionList:focus {
        height: 1fr; border: none; padding: 1; background: $background;
    }
    """
    BINDINGS = [
        Binding("enter", "examine_one", "Run this again", priority=True),
        Binding("m", "mend", "Mend"),
        Binding("t", "stress", "Test cards"),
        Binding("r", "examine", "Run again"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.checks: list[Found] = []
        self._under = 0
        """The place of the check that the cursor was on last."""

    def compose_body(self) -> ComposeResult:
        yield Static(id="verdict")
        yield OptionList(id="checks")

    def on_mount(self) -> None:
        self.listing.focus()
        self.action_examine()

    @property
    def listing(self) -> OptionList:
        return self.query_one("#checks", OptionList)

    @property
    def chosen(self) -> Found | None:
        """The check under the cursor."""
        if not self.checks:
            return None
        at = self.listing.highlighted
        return self.checks[at] if at is not None and at < len(self.checks) else None

    def action_move(self, by: int) -> None:
        self.listing.action_cursor_down() if by > 0 else self.listing.action_cursor_up()

    @on(OptionList.OptionHighlighted)
    def _moved(self, event: OptionList.OptionHighlighted) -> None:
        self.refresh_bindings()
        for at in {self._under, event.option_index}:
            if at < min(len(self.checks), self.listing.option_count):
                chosen = at == self.listing.highlighted
                self.listing.replace_option_prompt_at_index(at, describe(self.checks[at], chosen=chosen))
        self._under = event.option_index

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "examine_one":
            return self.chosen is not None
        if action == "mend":
            ill = self.chosen is not None and bool(self.chosen.get("mend")) and not self.chosen["ok"]
            return ill and not self.app.readonly
        return action != "stress" or not self.app.readonly

    # ── what the keys do ──────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="doctor")
    async def action_examine(self) -> None:
        engine = self.app.engine
        where = tr("this machine") if engine.is_here else engine.name
        self._verdict(Content(tr("examining {where} … (takes some seconds)", where=where)))
        if (found := await self._ask_doctor()) is not None:
            self._show_checks(found["checks"])

    @work(exclusive=True, group="doctor")
    async def action_examine_one(self) -> None:
        """Run the check under the cursor again by itself, or the test of the cards that it comes from."""
        if (check := self.chosen) is None:
            return
        if check.get("stress"):
            if not self.app.readonly:
                self._stress()
            return
        self._verdict(Content(tr("checking {name} …", name=check["name"])))
        if (found := await self._ask_doctor(check["name"])) is not None:
            self._show_checks(replace(self.checks, {check["name"]}, found["checks"]))

    @opens_dialog
    @work(exclusive=True, group="dialog")
    async def action_mend(self) -> None:
        """Run the command that mends the check under the cursor, after a question; show one that is not safe."""
        if (check := self.chosen) is None or not check.get("mend"):
            return
        if not check.get("fix"):
            mend = tr_engine(check["mend"])
            text = tr("{mend}\n\nThis is left to you: it may change more than this check.", mend=mend)
            await self.app.push_screen_wait(Confirm(tr("Mend {name} by hand", name=check["name"]), text, {}))
            return
        command = " ".join(("cockpit", *check["fix"]))
        title = tr("Mend {name}", name=check["name"])
        if await self.app.push_screen_wait(Confirm(title, command, {"y": tr("run it")})):
            self._mend(check, command)

    @work(exclusive=True, group="doctor")
    async def _mend(self, check: Found, command: str) -> None:
        self._verdict(Content(f"{command} …"))
        if (found := await self._ask_doctor(check["name"], "--fix", "--yes")) is not None:
            self._show_checks(replace(self.checks, {check["name"]}, found["checks"]))
            failed = [each["command"] for each in found.get("mended", ()) if each["status"]]
            if failed:
                text = tr("{command} failed: run it in a terminal to see why", command=failed[0])
                self.notify(text, severity="error")

    @opens_dialog
    @work(exclusive=True, group="dialog")
    async def action_stress(self) -> None:
        """Test the cards after a question."""
        text = tr(
            "Every card that nobody uses computes for {seconds} s, and its free memory is filled. "
            "Without a card, the CPU is tested. What else runs here becomes slower meanwhile.",
            seconds=STRESS_SECONDS,
        )
        if await self.app.push_screen_wait(Confirm(tr("Test the cards"), text, {"y": tr("test them")})):
            self._stress()

    @work(exclusive=True, group="doctor")
    async def _stress(self) -> None:
        self._verdict(Content(tr("testing for {seconds} s …", seconds=STRESS_SECONDS)))
        if (found := await self._ask_doctor(f"--stress={STRESS_SECONDS}")) is not None:
            others = [check for check in self.checks if not check.get("stress")]
            self._show_checks([*({**each, "stress": True} for each in found["checks"]), *others])

    # ── the doctor's process ──────────────────────────────────────────────────────────────────────────────────────

    async def _ask_doctor(self, *arguments: str) -> dict[str, Any] | None:
        """Run the doctor in a process of its own, because it loads libraries that the app never loads. It ends with
        this screen. Returns what it printed, or None after it was shown that it failed."""
        engine = self.app.engine
        command = [sys.executable, "-P", "-m", "engine.workers.doctor", "--home", str(self.app.home.root), "--json"]
        command += arguments
        if engine.link is not None:
            try:
                command = engine.link.build_command("--json", "doctor", *arguments)
            except ProblemError as error:
                self._verdict(Content.styled(f"✗ {tr_engine(error.problem.cause)}", "$text-error"))
                return None
        doctor = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=build_engine_environment(),
            cwd="/",
            start_new_session=True,
        )
        try:
            output, errors = await doctor.communicate()
        finally:
            if doctor.returncode is None:  # the screen was left early: end the doctor and its child processes too
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(doctor.pid, signal.SIGKILL)
        return self._read(output.decode(errors="replace"), errors.decode(errors="replace"))

    def _read(self, output: str, errors: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(output.splitlines()[-1])
            if isinstance(found["checks"], list):
                return found
        except (ValueError, KeyError, IndexError, TypeError):
            pass
        self._verdict(Content.styled(tr("✗ the doctor itself failed; r runs it again"), "$text-error"))
        self.checks = []
        self.listing.clear_options()
        self.listing.add_option(Content(errors.strip() or tr("it printed nothing")))
        return None

    def _show_checks(self, checks: list[Found]) -> None:
        """Show the checks; the cursor stays on the one it was on, or the nearest of its name."""
        before, place = self.chosen, self.listing.highlighted or 0
        self.checks = checks
        failed = sum(check["ok"] is False for check in checks)
        words = tr("✗ one requirement fails: see →") if failed == 1 else ""
        words = words or tr("✗ {count} requirements fail: see →", count=failed)
        good = Content.styled(tr("✓ all requirements are met"), "$text-success")
        self._verdict(Content.styled(words, "$text-error") if failed else good)
        self.listing.clear_options()
        self.listing.add_options([describe(check) for check in checks])
        same = [at for at, check in enumerate(checks) if before is not None and check["name"] == before["name"]]
        self.listing.highlighted = min(same, key=lambda at: abs(at - place), default=0) if checks else None
        self.refresh_bindings()

    def _verdict(self, content: Content) -> None:
        self.query_one("#verdict", Static).update(content, layout=False)
