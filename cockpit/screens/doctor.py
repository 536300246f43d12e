"""The doctor screen: what works on this machine, what does not, and how to fix it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from rich.table import Table
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr_engine
from cockpit.screens.base import CockpitScreen
from engine.protocol.client import build_engine_environment
from engine.protocol.messages import ProblemError

MARKS = {True: Text("✓", "bold green"), False: Text("✗", "bold red"), None: Text("–", "yellow")}
"""Result -> mark. None is for information that no job depends on."""


def report(checks: list[dict[str, Any]]) -> Table:
    """A row for each check: mark, name, result, and below it how to fix the problem."""
    table = Table.grid(padding=(0, 1))
    for check in checks:
        fix = f"\n→ {check['mend']}" if check.get("mend") else ""
        table.add_row(MARKS[check["ok"]], Text(check["name"], "bold"), Text(check["detail"]) + Text(fix, "bold yellow"))
    return table


class DoctorScreen(CockpitScreen):
    HELP_TEXT = """
    Each check is a real trial: it trains a small quantized layer, for example, or lets processes add numbers.
    ✓ works · ✗ a requirement fails, with the command that fixes it · – information only.
    """
    DEFAULT_CSS = """
    DoctorScreen #verdict { height: 1; padding: 0 1; background: $surface; }
    DoctorScreen #report { height: 1fr; padding: 1; }
    """
    BINDINGS = [
        Binding("r", "examine", "Run again"),
        Binding("j", "screen.scroll(2)", "Down", show=False),
        Binding("k", "screen.scroll(-2)", "Up", show=False),
    ]

    def compose_body(self) -> ComposeResult:
        yield Static(id="verdict")
        with VerticalScroll(id="report"):
            yield Static(id="checks")

    def on_mount(self) -> None:
        self.query_one("#report").focus()
        self.action_examine()

    def action_scroll(self, by: int) -> None:
        self.query_one("#report").scroll_relative(y=by, animate=False)

    @work(exclusive=True)
    async def action_examine(self) -> None:
        """Run the doctor in a process of its own, because it loads libraries that the app never loads. It ends with
        this screen."""
        engine = self.app.engine
        self._verdict(Content(f"examining {'this machine' if engine.is_here else engine.name} … (takes some seconds)"))
        command = [sys.executable, "-P", "-m", "engine.workers.doctor", "--home", str(self.app.home.root), "--json"]
        if engine.link is not None:
            try:
                command = engine.link.build_command("--json", "doctor")
            except ProblemError as error:
                self._verdict(Content.styled(f"✗ {tr_engine(error.problem.cause)}", "$text-error"))
                return
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
        self._show(output.decode(errors="replace"), errors.decode(errors="replace"))

    def _show(self, output: str, errors: str) -> None:
        try:
            checks = json.loads(output.splitlines()[-1])["checks"]
        except (ValueError, KeyError, IndexError):
            self._verdict(Content.styled("✗ the doctor itself failed; r runs it again", "$text-error"))
            self.query_one("#checks", Static).update(Content(errors.strip() or "it printed nothing"))
            return
        failed = sum(check["ok"] is False for check in checks)
        words = "requirement fails" if failed == 1 else "requirements fail"
        good = Content.styled("✓ all requirements are met", "$text-success")
        self._verdict(Content.styled(f"✗ {failed} {words}: see →", "$text-error") if failed else good)
        self.query_one("#checks", Static).update(report(checks))

    def _verdict(self, content: Content) -> None:
        self.query_one("#verdict", Static).update(content, layout=False)
