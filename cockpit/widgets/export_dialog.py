"""A dialog that exports a run's best checkpoint: it shows the progress, then how the export compares with the
checkpoint."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.connection.engine_app import EngineApp
from cockpit.connection.service_client import ServiceClient
from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.state.formatting import format_number
from engine.protocol.messages import ProblemError

POLL = 0.3
"""Seconds between two updates of the progress."""


class ExportDialog(ModalScreen[None]):
    """Starts exporting when it is opened. Esc cancels a running export, and closes the dialog of one that is done."""

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    DEFAULT_CSS = """
    ExportDialog { align: center middle; }
    ExportDialog > Vertical {
        width: 76; max-width: 96%; height: auto; border: round $accent; background: $surface; padding: 0 1;
    }
    ExportDialog Static { height: auto; }
    """
    BINDINGS = [("escape,enter", "leave", "Close")]

    def __init__(self, run: str, out: str) -> None:
        super().__init__()
        self.run_id, self.out = run, out
        self.request = uuid.uuid4().hex
        self.result: dict[str, Any] | None = None
        self.worker: ServiceClient | None = None

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(tr("Export {run_id}", run_id=self.run_id))
            box.border_subtitle = tr("Esc cancels")
            yield Static(tr("starting …"))

    def on_mount(self) -> None:
        self.set_interval(POLL, self._poll)
        self._export()

    @work
    async def _export(self) -> None:
        self.worker = ServiceClient(self.app, "export")
        arguments = {"target": self.run_id, "directory": self.app.engine.directory, "out": self.out}
        try:
            self.result = await self.worker.ask("export", arguments, self.request)
            self._show(describe_export(self.result or {}), tr("Enter closes"))
        except ProblemError as error:
            self.result = {}
            self._show(Content(tr_engine(str(error.problem))), tr("Esc closes"))
        finally:
            await self.worker.close()

    def _poll(self) -> None:
        service = self.worker.service if self.worker else None
        if self.result is None and service is not None and service.detail:
            self._show(Content(f"{service.detail} …"), tr("Esc cancels"))

    def _show(self, text: Content, keys: str) -> None:
        self.query_one(Static).update(text)
        self.query_one(Vertical).border_subtitle = keys

    async def action_leave(self) -> None:
        if self.result is None and self.worker is not None:
            await self.worker.cancel(self.request)
            self._show(Content(tr("cancelling …")), "")
        else:
            self.dismiss(None)


def describe_export(result: dict[str, Any]) -> Content:
    """What was exported, and how it compares with the checkpoint."""
    agreement = result.get("agreement", {})
    lines = [tr("{kind} in {directory}", kind=result.get("kind"), directory=result.get("directory"))]
    if agreement.get("kl") is not None:
        lines.append(
            tr(
                "KL {kl} nats a token, same likeliest token {top1:.1%}",
                kl=format_number(agreement["kl"]),
                top1=agreement["top1"],
            )
        )
    if agreement.get("score_difference") is not None:
        lines.append(
            tr(
                "scores differ by at most {score_difference}",
                score_difference=format_number(agreement["score_difference"]),
            )
        )
    if agreement.get("golden"):
        lines.append(
            tr(
                "golden prompts with equal replies: {golden_equal} of {golden}",
                golden_equal=agreement["golden_equal"],
                golden=agreement["golden"],
            )
        )
    if agreement.get("base"):
        lines.append(tr("merged into the {base} base, which agrees better with the checkpoint", base=agreement["base"]))
    return Content("\n".join(lines))
