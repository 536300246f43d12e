"""A run's best checkpoint on its way into a folder for others: how far it is, then how it compares with the checkpoint."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.connection.engine_app import EngineApp
from cockpit.connection.service_client import Worker
from cockpit.state.formatting import number
from engine.protocol.messages import ProblemError

GLANCE = 0.3
"""Seconds between two looks at how far it is."""


class Exporting(ModalScreen[None]):
    """Begins on being shown. Esc gives the export up while it is being made, and leaves when it is done."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    Exporting { align: center middle; }
    Exporting > Vertical { width: 76; max-width: 96%; height: auto; border: round $accent; background: $surface; padding: 0 1; }
    Exporting Static { height: auto; }
    """
    BINDINGS = [("escape,enter", "leave", "Leave")]

    def __init__(self, run: str, out: str) -> None:
        super().__init__()
        self.run_id, self.out = run, out
        self.request = uuid.uuid4().hex
        self.made: dict[str, Any] | None = None
        self.worker: Worker | None = None

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = f"Export {self.run_id}"
            box.border_subtitle = "Esc gives it up"
            yield Static("beginning …", markup=False)

    def on_mount(self) -> None:
        self.set_interval(GLANCE, self._look)
        self._export()

    @work
    async def _export(self) -> None:
        self.worker = Worker(self.app, "export")
        arguments = {"target": self.run_id, "directory": str(Path.cwd()), "out": self.out}
        try:
            self.made = await self.worker.ask("export", arguments, self.request)
            self._tell(outcome(self.made or {}), "Enter leaves")
        except ProblemError as error:
            self.made = {}
            self._tell(Content(str(error.problem)), "Esc leaves")
        finally:
            await self.worker.close()

    def _look(self) -> None:
        service = self.worker.service if self.worker else None
        if self.made is None and service is not None and service.detail:
            self._tell(Content(f"{service.detail} …"), "Esc gives it up")

    def _tell(self, text: Content, keys: str) -> None:
        self.query_one(Static).update(text)
        self.query_one(Vertical).border_subtitle = keys

    async def action_leave(self) -> None:
        if self.made is None and self.worker is not None:
            await self.worker.cancel(self.request)
            self._tell(Content("giving it up …"), "")
        else:
            self.dismiss(None)


def outcome(made: dict[str, Any]) -> Content:
    """What was made and how it compares."""
    agreed = made.get("agreement", {})
    lines = [f"{made.get('kind')} in {made.get('directory')}"]
    if agreed.get("kl") is not None:
        lines.append(f"KL {number(agreed['kl'])} nats a token, same likeliest token {agreed['top1']:.1%}")
    if agreed.get("score_difference") is not None:
        lines.append(f"scores differ by at most {number(agreed['score_difference'])}")
    if agreed.get("golden"):
        lines.append(f"golden prompts answered alike: {agreed['golden_equal']} of {agreed['golden']}")
    if agreed.get("base"):
        lines.append(f"merged into the {agreed['base']} base, which answers more like the checkpoint")
    return Content("\n".join(lines))
