"""The page about an exception of the app itself: what happened, and the way back."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widgets import Static

from cockpit.content import Content
from cockpit.fault_guard import Fault, FaultPage
from cockpit.language.translate import tr


class FaultScreen(FaultPage):
    """Made of nothing but text, so that what has failed cannot fail here again."""

    DEFAULT_CSS = """
    FaultScreen { background: $background; }
    FaultScreen VerticalScroll { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    FaultScreen #keys { dock: bottom; height: 1; background: $panel; text-wrap: nowrap; }
    """
    BINDINGS = [
        Binding("escape", "close", "Back", tooltip="Go back."),
        Binding("c", "copy", "Copy", tooltip="Copy the report."),
    ]

    def __init__(self, fault: Fault, log: str) -> None:
        super().__init__()
        self.fault, self._log = fault, log
        self._more = 0

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(self._text(), id="text")
        keys = (("Esc", "Back"), ("c", tr("Copy the report")), ("q", "Detach"))
        parts = [part for key, label in keys for part in ((f" {key} ", "bold $accent"), f"{label} ")]
        yield Static(Content.assemble(*parts), id="keys")

    def count(self) -> None:
        self._more += 1
        self.query_one("#text", Static).update(self._text())

    def _text(self) -> Content:
        problem = self.fault.problem
        way = tr("Esc closes the screen that failed.") if self.fault.broken else tr("Esc goes back to where you were.")
        more = tr("\n{more} more since then; the log has them.", more=self._more) if self._more else ""
        return Content.assemble(
            (f"✗ {problem.title}\n\n", "bold $text-error"),
            f"{problem.cause}\n",
            (tr("{place}\ncode {code}{more}\n\n", place=problem.place, code=problem.code, more=more), "$text-muted"),
            tr(
                "Your runs go on, and so does this app. {way}\nThe report is in {log}.\n→ {hint}\n\n",
                way=way,
                log=self._log,
                hint=problem.hint,
            ),
            (self.fault.report, "dim"),
        )

    async def action_close(self) -> None:
        await self.run_action("app.close_fault")

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.fault.report)
        self.notify(tr("copied: the report"))
