"""The line that says what the profile being edited takes, computed by the engine's host while one types."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from textual import work

from cockpit.connection.engine_app import EngineApp
from cockpit.connection.service_client import ServiceClient
from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.widgets.line import MUTED, Line
from engine.protocol.messages import Problem, ProblemError

if TYPE_CHECKING:
    from textual.timer import Timer

    from engine.config.profile import Profile

DEBOUNCE = 1.0
"""Seconds without a change after which a profile is forecast."""
IDLE = 120.0
"""Seconds after the last forecast until the process that makes them ends: it has the training libraries in memory."""
VERDICTS = {
    "fits": ("✓ ", "$text-success", ""),
    "near": ("! hardly fits: ", "$text-warning", " · F finds what does"),
    "too_large": ("✗ does not fit: ", "$text-error", " · F finds what does"),
}
"""Verdict -> mark, colour and advice; for any other, there is nothing to say."""


class ForecastLine(Line):
    """Asks for one forecast at a time. When the profile changes, the one under way is cancelled and its answer
    ignored."""

    DEFAULT_CSS = """
    ForecastLine { height: 1; padding: 0 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(id="forecast")
        self.service = ServiceClient(self.app, "fit")
        self._asked: tuple[str, str] | None = None
        """Profile and directory of what is shown, or is being computed."""
        self._waiting = 0
        """Questions without an answer yet."""
        self._idle: Timer | None = None
        """Ends the service; None while there are questions."""

    async def on_unmount(self) -> None:
        await self.service.close()

    def follow(self, profile: Profile | None) -> None:
        """Show the forecast of this profile, None for one that has problems, as soon as it is there."""
        if profile is None:
            self._forget(tr("no forecast before the problems are mended"))
        elif profile.launch.via != "local":
            self._forget(tr("no forecast: the cards of other hosts are not known before it is launched"))
        elif profile.model.trust_remote_code:
            self._forget(
                tr("no forecast unasked: it runs the model's own code (model.trust_remote_code) · F makes one")
            )
        elif (wanted := self.describe(profile)) != self._asked:
            self._asked = wanted
            self.show(Content.styled(tr("… computing what it takes"), MUTED))
            self._compute(wanted)

    def describe(self, profile: Profile) -> tuple[str, str]:
        """The profile's text as the engine's host gets it, and the directory of its relative paths there."""
        engine = self.app.engine
        return profile.to_yaml(), str(profile.directory) if engine.is_here else engine.directory

    async def ask(self, question: str, wanted: tuple[str, str], request: str, **further: Any) -> Any:
        """The answer of the service. Cancels the question when the caller is cancelled. Raises ProblemError."""
        self._waiting += 1
        self._stop_idling()
        try:
            return await self.service.ask(question, {"profile": wanted[0], "directory": wanted[1], **further}, request)
        except asyncio.CancelledError:
            if self.is_attached and self.app.client is not None:
                self.run_worker(self.service.cancel(request), group="cancel")
            raise
        finally:
            self._waiting -= 1
            if not self._waiting and self.is_attached:
                self._stop_idling()
                self._idle = self.set_timer(IDLE, self._end_service)

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.stop()
            self._idle = None

    def _forget(self, why: str) -> None:
        self._asked = None
        self.workers.cancel_group(self, "forecast")
        self.show(Content.styled(f"– {why}", MUTED))

    @work(exclusive=True, group="forecast")
    async def _compute(self, wanted: tuple[str, str]) -> None:
        await asyncio.sleep(DEBOUNCE)
        while self.app.client is None:  # the app is still connecting
            await asyncio.sleep(DEBOUNCE)
        try:
            found = await self.ask("forecast", wanted, uuid.uuid4().hex)
        except ProblemError as error:
            found = error.problem
        if wanted != self._asked or not self.is_attached:
            return
        if isinstance(found, Problem):
            self._asked = None  # the next change asks again
            self.show(
                Content.styled(tr("– no forecast: {tr_engine}", tr_engine=tr_engine(found.cause or found.title)), MUTED)
            )
        else:
            self.show(format_forecast(found))

    async def _end_service(self) -> None:
        await self.service.close()


def format_forecast(found: dict[str, Any]) -> Content:
    """The forecast in a line, with its verdict."""
    from engine.config.forecasts import summarize  # pydantic: not before the first paint

    if "host_bytes" not in found:
        return Content.styled(tr("– no forecast"), MUTED)
    mark, colour, advice = VERDICTS.get(found["verdict"], ("", "$text", ""))
    assumed = "" if found.get("rows_measured") else tr(" · longest rows assumed")
    return Content.assemble((mark, colour), (summarize(found), "$text"), (advice, colour), (assumed, MUTED))
