"""What the devices of a run have done since it began, along the axis of its loss."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.screens.base import CockpitScreen
from cockpit.state.app_state import RunHistory
from cockpit.state.device_history import HELD, HOST, QUANTITIES, Asked, Track, add_sample, make_tracks, needed_step
from cockpit.widgets.chart import Chart, curve_from_series
from cockpit.widgets.chart_axes import STEPS, Mapping, elapsed, run_axes
from cockpit.widgets.chart_raster import GUTTER, Trace
from cockpit.widgets.device_strips import DeviceStrips
from cockpit.widgets.throttle import Throttle
from engine.protocol.messages import CLOCK, Points, Run, RunRef, SeriesQuery, Telemetry, TelemetryQuery
from engine.protocol.states import LIVE

if TYPE_CHECKING:
    from cockpit.state.app_state import AppState

LOSS = "train/loss"
POINTS = 600
"""Buckets requested of the loss."""
SAMPLES = 300
"""Samples requested of the whole past: about one for each cell of a wide terminal."""
MOST_SAMPLES = 1000
"""Samples requested of a part at most."""
SETTLE = 0.15
"""Seconds that a part is looked at before its samples are requested: + is pressed several times."""
APART = 10.0
"""Seconds between two moments of the clock that arrive while the screen is open."""
LEAST_CHART = 8
"""Lines that the loss keeps."""
MOST_TALL = 3
"""Lines that a device's row has at most."""


class DeviceHistoryScreen(CockpitScreen):
    OVER = "Devices"
    AUTO_FOCUS = "#loss"
    HELP_TEXT = """\
What each device of the run has done since the run began, below the loss and on the same axis: move the crosshair, zoom
and pan as in any chart. A row is as high as the device is busy, full, hot or powered; ▼ marks one that is far less busy
than the others, red one that is hot or full. Zooming in loads finer samples. There is one a second of the last hour and
one a minute of before, of the host of the engine."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "quantity", "Quantity"),
        Binding("plus,equals_sign", "zoom(1)", "Zoom in", key_display="+", show=False),
        Binding("minus", "zoom(-1)", "Zoom out", key_display="-", show=False),
        Binding("pagedown", "page(1)", "More devices", key_display="PgDn"),
        Binding("pageup", "page(-1)", "Devices before", show=False),
        Binding("escape", "leave", "Back", key_display="Esc"),
        Binding("q", "leave", "Back", show=False),
    ]
    DEFAULT_CSS = """
    DeviceHistoryScreen #loss { height: 1fr; }
    DeviceHistoryScreen #strips { height: auto; }
    DeviceHistoryScreen #nothing { height: auto; padding: 0 1; color: $text-muted; display: none; }
    DeviceHistoryScreen.-nothing #nothing { display: block; }
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_id = run
        self.quantity = ""
        """The quantity at the top; those after it follow where there is room."""
        self._tracks: dict[str, list[Track]] = {}
        self._clock: Mapping = STEPS
        """Moments as steps, and back."""
        self._asked = Asked()
        self._wanted: tuple[float, float, float] | None = None
        """The span whose samples are being requested, and the seconds between two."""
        self._first = 0
        """The first device that has a row."""
        self._visible = 0
        self._throttle = Throttle(self, self._draw, 1.0)

    def compose_body(self) -> ComposeResult:
        yield Chart(tr("loss"), smoothing=0.6, id="loss")
        yield Static(id="nothing")
        yield Vertical(id="strips")

    def on_mount(self) -> None:
        self._load()

    def on_resize(self) -> None:
        self.call_after_refresh(self._arrange)

    # ── content ───────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="load")
    async def _load(self) -> None:
        run = self.app.state.runs.get(self.run_id)
        if run is None:
            return
        query = SeriesQuery(run=run.id, names=[LOSS, CLOCK], points=POINTS)
        detail, reply = await asyncio.gather(self.app.ask("show", RunRef(run=run.id)), self.app.ask("series", query))
        if detail is None or reply is None:
            return
        self.app.take(detail)
        series = {each.name: each for each in reply.series}
        clock = series[CLOCK]
        kept = elapsed(clock.last_step, clock.last)
        if kept is STEPS:
            self._say(
                tr("{name} has made no two steps yet: there is nothing to put devices beside.", name=run.name or run.id)
            )
            return
        self._clock = Mapping(kept.steps, [clock.last[0] + seconds for seconds in kept.values])
        first, last = self._clock.values[0] - 60.0, (run.ended or None) if run.state not in LIVE else None
        history = await self.app.ask("telemetry", TelemetryQuery(first=first, last=last, points=SAMPLES))
        samples = [sample for sample in history.samples if self._is_of(run, sample)] if history is not None else []
        names = [each.name for each in QUANTITIES] if any(sample.devices for sample in samples) else []
        self._asked.add(first, last or math.inf, ((last or time.time()) - first) / SAMPLES)
        self._tracks = {name: make_tracks(samples, name, run.devices) for name in [*names, HOST]}
        if history is not None and len(samples) < len(history.samples):
            self._say(tr("The run is of the host {host}: this engine has sampled its own host.", host=run.host))
        elif not samples:
            self._say(tr("No samples of the devices are kept of that time."))
        start = self.app.state.histories.get(run.id, RunHistory()).start
        chart, curve = self.query_one(Chart), curve_from_series(series[LOSS])
        traces = {LOSS: Trace(curve)} if len(curve) else {}
        chart.load(traces, run.max_steps, {LOSS: run_axes(start, clock.last_step, clock.last)})
        self.quantity = self.quantity or next(iter(self._tracks))
        self._arrange()

    def _refine(self, moments: list[float]) -> float:
        """Request finer samples where there are too few for the cells between `moments`. Returns how many seconds
        apart those are that are there."""
        first, last, apart = self._asked.spans[0]
        first, last, step = max(moments[0], first), min(moments[-1], last), needed_step(moments)
        apart = min(apart, self._asked.step(first, last))
        run = self.app.state.runs.get(self.run_id)
        if run is not None and first < last and step < apart and self._wanted != (first, last, step):
            self._wanted = (first, last, step)
            self._load_part(run, first, last, step)
        return apart

    @work(exclusive=True, group="part")
    async def _load_part(self, run: Run, first: float, last: float, step: float) -> None:
        await asyncio.sleep(SETTLE)
        growing = run.state in LIVE and last >= time.time() - HELD  # what follows arrives by itself
        points = min(MOST_SAMPLES, math.ceil((last - first) / step))
        query = TelemetryQuery(first=first, last=None if growing else last, points=points)
        history = await self.app.ask("telemetry", query)
        # What could not be had is not requested again for each frame.
        self._asked.add(first, math.inf if growing else last, step)
        self._wanted = None
        samples = [sample for sample in history.samples if self._is_of(run, sample)] if history is not None else []
        for name, tracks in self._tracks.items():
            known = {track.label: track for track in tracks}
            for part in make_tracks(samples, name, run.devices):
                if part.label in known:
                    known[part.label].merge(part)
        self._draw()

    def _say(self, text: str) -> None:
        self.query_one("#nothing", Static).update(Content(text))
        self.add_class("-nothing")

    def receive(self, state: AppState, body: object) -> None:
        run = state.runs.get(self.run_id)
        if run is None or run.state not in LIVE or not self._tracks:
            return
        if isinstance(body, Telemetry):
            if not self._is_of(run, body):
                return
            for name, tracks in self._tracks.items():
                add_sample(tracks, body, name)
        elif isinstance(body, Points) and body.run == run.id and LOSS in body.values:
            self._clock = _extend(self._clock, body.values.get(CLOCK, ()))
            self.query_one(Chart).append(LOSS, body.values[LOSS])
        else:
            return
        if self.is_active:
            self._throttle.request()

    @staticmethod
    def _is_of(run: Run, sample: Telemetry) -> bool:
        """Whether the sample is of the run's host. Hosts may share a home."""
        return sample.host.name == run.host or not (sample.host.name and run.host)

    # ── showing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _arrange(self) -> None:
        """Choose which quantities have room, and how many devices."""
        if not self._tracks:
            return
        room = max(3, self.app.size.height - 2 - LEAST_CHART)
        names = list(self._tracks)
        at = names.index(self.quantity)
        rows = max(len(tracks) for tracks in self._tracks.values())
        self._visible = min(rows, room - 2)
        shown, used = [], 0
        for name in [*names[at:], *names[:at]]:
            height = min(len(self._tracks[name]), self._visible) + 2
            if used + height > room:
                break
            shown.append(name)
            used += height
        tall = max(1, min(MOST_TALL, 1 + (room - used) // max(1, sum(len(self._tracks[name]) for name in shown))))
        box = self.query_one("#strips", Vertical)
        if [strip.quantity for strip in box.query(DeviceStrips)] != shown:
            box.remove_children()
            box.mount_all([DeviceStrips(name) for name in shown])
        for strip in box.query(DeviceStrips):
            strip.styles.height = tall * min(len(self._tracks[strip.quantity]), self._visible) + 2
        self._first = max(0, min(self._first, rows - self._visible))
        self.refresh_bindings()
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        chart = self.query_one(Chart)
        width = chart.content_size.width - GUTTER
        if width < 1 or not self._tracks:
            return
        first, last = chart.span()
        edges = [first + (last - first) * at / width for at in range(width + 1)]
        moments = [self._moment(edge) for edge in edges]
        held = max(HELD, 2 * self._refine(moments))
        cross = None if chart.cross is None else self._moment(chart.cross)
        for strip in self.query(DeviceStrips):
            tracks = self._tracks[strip.quantity]
            shown = tracks[self._first : self._first + self._visible] if strip.quantity != HOST else tracks
            note = (
                tr(
                    " · devices {first} to {last} of {count}",
                    first=shown[0].label,
                    last=shown[-1].label,
                    count=len(tracks),
                )
                if len(shown) < len(tracks)
                else ""
            )
            for track in shown:
                track.held = held
            strip.show(shown, moments, cross, note)

    def _moment(self, position: float) -> float:
        """When the run was at a position of the chart's axis."""
        return self._clock.position(self.query_one(Chart).mapping.step(position))

    @on(Chart.Changed)
    def _chart_changed(self) -> None:
        self._draw()

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "page":
            return any(len(tracks) > self._visible for tracks in self._tracks.values())
        if action == "quantity":
            return len(self._tracks) > 1
        return True

    def action_quantity(self) -> None:
        """Put the next quantity at the top."""
        names = list(self._tracks)
        self.quantity = names[(names.index(self.quantity) + 1) % len(names)]
        self._arrange()

    def action_page(self, by: int) -> None:
        self._first = max(0, self._first + by * self._visible)
        self._arrange()

    def action_zoom(self, direction: int) -> None:
        self.query_one(Chart).zoom_by(direction)

    def action_leave(self) -> None:
        self.app.pop_screen()


def _extend(clock: Mapping, points: Iterable[tuple[int, float]]) -> Mapping:
    """The clock with the moments of newer steps, each `APART` from the one before."""
    steps, moments = [*clock.steps], [*clock.values]
    for step, moment in points:
        if step > steps[-1] and moment >= moments[-1] + APART:
            steps.append(step)
            moments.append(moment)
    return Mapping(steps, moments) if len(steps) > len(clock.steps) else clock
