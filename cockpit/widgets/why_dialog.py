"""A dialog that says why a run is slow or does not learn, what to change first, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.cells import set_cell_size
from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.state.app_state import RunHistory
from cockpit.widgets.line import MUTED
from cockpit.widgets.run_dialog import RunDialog
from engine.config.diagnosis import SERIES, Evidence, Finding, Point, diagnose
from engine.protocol.messages import Run, Series, SeriesQuery

POINTS = 400
BAR = 30
"""Cells of a bar at most."""
LEAST = 0.005
"""A share from which a duty has a line."""
WORDS = {
    "data": "waiting for data",
    "rollouts": "generating",
    "copy": "copying",
    "forward": "forward",
    "backward": "backward",
    "wait": "waiting for ranks",
    "reduction": "summing gradients",
    "optimizer": "optimiser",
    "logging": "logging",
    "evaluation": "evaluating",
    "saving": "saving",
}


class WhyDialog(RunDialog[None]):
    DEFAULT_CSS = "WhyDialog VerticalScroll { height: 1fr; } WhyDialog Static { width: 1fr; height: auto; }"
    BINDINGS = [("j", "scroll(1)", "Down"), ("k", "scroll(-1)", "Up")]

    def __init__(self, run: str) -> None:
        super().__init__(tr("is it working"), run)
        self._series: Mapping[str, Sequence[Point]] | None = None
        """None while the curves are being loaded."""

    def compose_dialog(self) -> ComposeResult:
        with VerticalScroll():
            yield Static()

    def on_mount(self) -> None:
        super().on_mount()
        self._load()

    @work(exclusive=True)
    async def _load(self) -> None:
        reply = await self.app.ask("series", SeriesQuery(run=self.run_id, names=list(SERIES), points=POINTS))
        self._series = {each.name: _list_points(each) for each in reply.series} if reply is not None else {}
        self.refresh_content(force=True)

    def show(self, run: Run, history: RunHistory) -> None:
        if self._series is None:
            self.query_one(Static).update(Content.styled(tr("reading the curves…"), MUTED))
            return
        # An attempt that began at an earlier step has taken back what came after it.
        series = {name: [point for point in points if point[0] <= run.step] for name, points in self._series.items()}
        evidence = Evidence(series, run.metrics, history.start or {})
        self.query_one(Static).update(Content("\n").join(_list_lines(run, diagnose(evidence))))

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


def _list_points(series: Series) -> list[Point]:
    return list(zip(series.last_step, series.last, strict=True))


def _list_lines(run: Run, findings: Sequence[Finding]) -> Iterator[Content]:
    for number, each in enumerate(findings, 1):
        colour = "$error" if each.code.startswith("learning.") else "$warning"
        yield Content.assemble(
            (f"{number}. ", MUTED), (tr_engine(each.message), f"bold {colour}"), (f"  {each.code}", MUTED)
        )
        yield Content.styled(f"   → {tr_engine(each.hint)}", "$text")
    if not findings:
        yield Content.styled(
            tr("Nothing stands out.") if run.step else tr("No steps yet."), "$success" if run.step else MUTED
        )
    shares = {name: run.metrics.get(f"time/{name}") or 0.0 for name in WORDS}
    if any(shares.values()):
        yield Content("")
        yield Content.styled(tr("where the time goes"), "bold $accent")
        widest = max(shares.values())
        for name, share in shares.items():
            if share >= LEAST:
                bar = "█" * max(1, round(share / widest * BAR))
                duty = set_cell_size(tr(WORDS[name]), 18)
                yield Content.assemble(
                    (duty, "$text"), (f"{share:>5.0%} ".replace("%", " %"), "bold"), (bar, "$primary")
                )
    facts = [
        f"{100 * value:.0f} % {words}"
        for key, words in (
            ("train/mfu", tr("of the cards' peak")),
            ("train/padding", tr("of each batch is padding")),
            ("train/weights_changed", tr("of the trained weights have changed")),
        )
        if (value := run.metrics.get(key)) is not None
    ]
    if facts:
        yield Content("")
        yield from (Content.styled(fact, "$text") for fact in facts)
