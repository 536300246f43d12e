"""Panels of the devices: one for each accelerator, and of the host and the ranks."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.app_state import AppState
from cockpit.state.formatting import format_size
from cockpit.widgets.chart import Graph
from cockpit.widgets.device_table import MANY, device_table, memory_bar, table_height
from cockpit.widgets.line import Line, labelled
from engine.config import card_health
from engine.protocol.messages import Device, Rank, Run, Telemetry
from engine.protocol.states import LIVE


class DevicePanel(Widget):
    """A title, a line of figures and a graph of the last minutes; on a low screen all in one row (dashboard.tcss)."""

    DEFAULT_CSS = """
    DevicePanel {
        border: round $primary; border-title-color: $accent; border-subtitle-color: $text-muted; padding: 0 1;
    }
    DevicePanel > Horizontal { height: 1; }
    DevicePanel .name { display: none; width: auto; color: $accent; }
    DevicePanel .figures { width: 1fr; height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.border_title = Content(tr(title))
        self._subtitle = ""
        self._title, self._figures, self._graph = title, Line(classes="figures"), Graph()

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static(Content(f"{tr(self._title)} "), classes="name")
            yield self._figures
        yield self._graph

    def show(self, figures: Content, values: Sequence[float], subtitle: str = "", *, bar: bool = False) -> None:
        """`bar`: there is a bar among the figures, which needs room."""
        self.set_class(bar, "-bar")
        self._figures.show(figures)
        self._graph.show(values)
        if subtitle != self._subtitle:
            self._subtitle = subtitle
            self.border_subtitle = Content(subtitle)


class RankPanel(Line):
    """Each rank's resident memory and its current phase."""

    DEFAULT_CSS = "RankPanel { height: 100%; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self) -> None:
        super().__init__(classes="panel")
        self.border_title = tr("Ranks")
        self._ranks: Sequence[Rank] = ()

    def on_resize(self) -> None:
        self.show_ranks(self._ranks)

    def show_ranks(self, ranks: Sequence[Rank]) -> None:
        self._ranks = ranks
        if not ranks:
            self.show(Content.styled(tr("this run has no process"), "$text-muted"))
            return
        if self.content_size.height <= 1:
            self.show(Content.assemble(("Ranks ", "$accent"), "  ".join(format_size(rank.resident) for rank in ranks)))
            return
        lines = [
            Content.assemble((f"{rank.rank} ", "$text-muted"), (f"{format_size(rank.resident):>6}", "bold $text"))
            for rank in ranks
        ]
        if len(ranks) > self.content_size.height:
            self.show(Content("  ").join(lines))
        else:
            phases = [
                f"  {rank.phase}" + (tr(" · step {step:,}", step=rank.step) if rank.step else "") for rank in ranks
            ]
            self.show(
                Content("\n").join(Content.assemble(line, phase) for line, phase in zip(lines, phases, strict=True))
            )


HOST = ("CPU", "Memory")
OWN = "this run"
SLIM = 66
"""Columns of the terminal below which panels stand below each other."""
MAX_BESIDE_HOST = 2
"""Accelerators up to which there is room for the host's panels too."""


class Devices(Widget):
    """A panel for each accelerator, and the host's where there is room; from `MANY` on a line each. Without
    accelerators, the ranks' memory is shown instead."""

    DEFAULT_CSS = """
    Devices { height: auto; layout: grid; grid-rows: 6; }
    Devices.-table { layout: vertical; padding: 0 1; }
    Devices #device-table { text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._panels: dict[str, DevicePanel] = {}
        self._ranks: RankPanel | None = None
        self._table: Line | None = None

    def show(self, state: AppState, run: Run | None) -> None:
        sample = state.telemetry
        if sample is None:
            return
        live = run if run and run.state in LIVE else None
        forecast = _read_forecast(state, live)
        if len(sample.devices) >= MANY:
            self._show_table(sample, live, forecast)
            return
        titles = [_title(device) for device in sample.devices]
        titles += HOST if len(titles) <= MAX_BESIDE_HOST else ()
        if list(self._panels) != titles or self._table is not None:
            self._mount(titles, with_ranks=not sample.devices)
        for device in sample.devices:
            values = state.device_history.get(f"device/{device.index}/utilisation", ())
            mine = live is not None and device.index in live.devices
            user = tr(OWN) if mine else _heaviest_process(device)
            faults = card_health.describe_flags(card_health.encode(device))
            line = _device_line(device, forecast if mine else 0.0)
            subtitle = " · ".join(filter(None, (faults, user)))
            self._panels[_title(device)].show(line, values, subtitle, bar=mine and forecast > 0)
        if "CPU" in self._panels:
            self._show_host(sample, state)
        if self._ranks:
            self._ranks.show_ranks(state.ranks.get(live.id, ()) if live else ())

    def on_resize(self) -> None:
        self._arrange()

    def _show_table(self, sample: Telemetry, live: Run | None, forecast: float) -> None:
        """Many devices: a line each."""
        if self._table is None:
            self.remove_children()
            self._panels, self._ranks, self._table = {}, None, Line(id="device-table")
            self.mount(self._table)
            self._arrange()
        width, low = max(20, self.screen.size.width - 2), self.screen.has_class("-low")
        height = table_height(len(sample.devices), width, low)
        if self._table.styles.height is None or self._table.styles.height.value != height:
            self._table.styles.height = height
        own = live.devices if live else ()
        self._table.show(device_table(sample.devices, sample.host, own, width, low=low, forecast=forecast))

    def _mount(self, titles: list[str], with_ranks: bool) -> None:
        self.remove_children()
        self._table = None
        self._panels = {title: DevicePanel(title) for title in titles}
        self._ranks = RankPanel() if with_ranks else None
        self.mount_all([*self._panels.values(), *([self._ranks] if self._ranks else [])])
        self._arrange()

    def _arrange(self) -> None:
        """Three or four panels in a row; two where a GPU's figures need half the screen."""
        self.set_class(self._table is not None, "-table")
        panels = len(self._panels) + (self._ranks is not None)
        narrow = self.screen.has_class("-narrow") and self._ranks is None
        most = 1 if self.screen.size.width < SLIM else 2 if narrow else 4
        self.styles.grid_size_columns = max(1, min(panels, most))

    def _show_host(self, sample: Telemetry, state: AppState) -> None:
        host, history = sample.host, state.device_history
        load = labelled(tr("load"), f"{host.load[0] if host.load else 0:.1f}/{host.cpu_count}")
        cpu = Content.assemble((f"{host.cpu_percent:.0f}%", "bold $text"), " ", load)
        self._panels["CPU"].show(cpu, history.get("host/cpu_percent", ()), sample.note.split(":")[0])
        memory = Content.styled(f"{format_size(host.memory_used)}/{format_size(host.memory_total)}", "bold $text")
        disk = tr("disk {disk_free} free", disk_free=format_size(host.disk_free))
        self._panels["Memory"].show(memory, history.get("host/memory_percent", ()), disk)


def _title(device: Device) -> str:
    return tr("GPU {index}", index=device.index)


def _read_forecast(state: AppState, run: Run | None) -> float:
    """The bytes that the run was forecast to take of a card; 0 where that is not known."""
    entry = state.histories[run.id].memory.get("forecast") if run and run.id in state.histories else None
    return float((entry or {}).get("device_bytes") or 0.0)


def _device_line(device: Device, forecast: float = 0.0) -> Content:
    """The figures of a device; – for one that it does not report. With a forecast of its memory, a bar with that
    mark."""
    used, total = device.memory_used, device.memory_total
    memory = "–" if used is None or total is None else f"{format_size(used).removesuffix('G')}/{format_size(total)}"
    heat = "–" if device.temperature is None else f"{device.temperature:.0f}°C"
    power = "–" if device.power is None else f"{device.power:.0f}W"
    busy = "  –" if device.utilisation is None else f"{device.utilisation:3.0f}%"
    bar = memory_bar(used / total, forecast / total) if forecast and used is not None and total else []
    gap = " " if bar else ""
    return Content.assemble((busy, "bold $text"), " ", *bar, (f"{gap}{memory} {heat} {power}", "$text"))


def _heaviest_process(device: Device) -> str:
    """Who uses most of a device: `unknown` where that cannot be said."""
    if device.processes is None:
        return "–"
    heaviest = max(device.processes, key=lambda process: process.memory or 0, default=None)
    if heaviest is None:
        return ""
    return f"{heaviest.user} {heaviest.name}" if heaviest.name else tr("unknown, pid {pid}", pid=heaviest.pid)
