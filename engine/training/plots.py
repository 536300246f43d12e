"""Loss curves as PNG files: the whole history beside the last thousand steps, drawn from a run's journal.

A separate process (`engine.workers.plot`) draws them: no step waits for it, and its failures do not affect the run.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.protocol import attempt_fence, journal
from engine.protocol.home import RunDirectory

RECENT_STEPS = 1000
"""Steps in the chart on the right."""
_MAX_POINTS = 250
"""A curve with more points is drawn as the means of that many equal spans, within a band from their minimum to their
maximum."""
_TIMEOUT = 60.0
"""Seconds that a run waits for its plots at the end."""
_COLOURS = {"train/loss": "#3b6ea5", "eval/loss": "#c8582b"}


# ── from inside a run ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Plots:
    """Plots of one attempt of a run, drawn while it continues; none unless `enabled`."""

    run: RunDirectory
    enabled: bool
    _drawing: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def draw(self, step: int) -> None:
        """Start drawing `loss_curve_step_<n>.png`, and the same as `loss_curve_latest.png`."""
        self._start(f"loss_curve_step_{step}.png", "loss_curve_latest.png")

    def finish(self, step: int) -> bool:
        """Draw `loss_curve_final_step_<n>.png` and wait for all plots. False when one could not be drawn; the log has
        the reason."""
        self._start(f"loss_curve_final_step_{step}.png", "loss_curve_latest.png")
        end = time.monotonic() + _TIMEOUT
        done = True
        for process in self._drawing:
            try:
                done &= process.wait(max(0.1, end - time.monotonic())) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                done = False
        self._drawing.clear()
        return done

    def _start(self, *names: str) -> None:
        if not self.enabled:
            return
        files = [argument for name in names for argument in ("--out", str(self.run.plots / name))]
        home = self.run.path.parent.parent
        command = [sys.executable, "-P", "-m", "engine.workers.plot", self.run.id, "--home", str(home), *files]
        attempt_fence.check()
        self._drawing.append(subprocess.Popen(["nice", *command], stdin=subprocess.DEVNULL))


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_curves(run: RunDirectory, names: Sequence[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (steps ascending, values) for those `names` that have values. A later attempt's value of a step replaces
    an earlier one's."""
    found: dict[str, dict[int, float | None]] = {name: {} for name in names}
    for line, _ in journal.read_lines(run.events):
        if b'"metrics"' not in line and b'"evaluation"' not in line and b'"start"' not in line:
            continue
        match journal.decode(line):
            case journal.Metrics(step=step, values=values) | journal.Evaluation(step=step, values=values):
                for name in names:
                    if name in values:
                        found[name][step] = values[name]
            case journal.Start(step=start):  # later steps of earlier attempts are superseded
                found = {
                    name: {at: each for at, each in points.items() if at <= start} for name, points in found.items()
                }
    known = {
        name: sorted((at, each) for at, each in points.items() if each is not None) for name, points in found.items()
    }
    return {name: ([at for at, _ in points], [each for _, each in points]) for name, points in known.items() if points}


# ── drawing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw_curves(title: str, found: dict[str, tuple[list[int], list[float]]]) -> bytes:
    """A PNG of 1680 × 720 pixels: the curves (as from `read_curves`) on the left, their last thousand steps on the
    right.

    Raises ValueError when there are no curves.
    """
    if not found:
        raise ValueError("there are no such metrics yet")
    import io

    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": _find_fonts(), "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(14, 6), layout="constrained")
        FigureCanvasAgg(figure)
        whole, recent = figure.subplots(1, 2, width_ratios=(3, 2))
        figure.suptitle(title, fontsize=14)
        end = max(steps[-1] for steps, _ in found.values())
        for name, (steps, values) in found.items():
            _draw_curve(whole, name, steps, values)
            first = next((at for at, step in enumerate(steps) if step > end - RECENT_STEPS), len(steps))
            if first < len(steps):
                _draw_curve(recent, name, steps[first:], values[first:])
        whole.set_title("whole history")
        recent.set_title(f"last {min(end, RECENT_STEPS):,} steps")
        _annotate_statistics(recent, found, end)
        for axes in (whole, recent):
            axes.set_xlabel("step")
            axes.grid(alpha=0.25)
        whole.set_ylabel("loss" if all(name.endswith("loss") for name in found) else "value")
        whole.legend(frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
        return stream.getvalue()


def _draw_curve(axes: Any, name: str, steps: Sequence[int], values: Sequence[float]) -> None:
    import numpy

    colour = _COLOURS.get(name)
    sparse = len(steps) <= 60
    if len(steps) <= _MAX_POINTS:
        axes.plot(steps, values, label=name, color=colour, linewidth=1.4, marker="o" if sparse else None, markersize=3)
        return
    parts = numpy.array_split(numpy.array([steps, values]), _MAX_POINTS, axis=1)
    at, mean = zip(*((part[0].mean(), part[1].mean()) for part in parts), strict=True)
    (drawn,) = axes.plot(at, mean, label=name, color=colour, linewidth=1.4)
    low, high = [part[1].min() for part in parts], [part[1].max() for part in parts]
    axes.fill_between(at, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)


def _annotate_statistics(axes: Any, found: dict[str, tuple[list[int], list[float]]], end: int) -> None:
    """Write each curve's current, lowest, highest and mean value over the last thousand steps below the chart on the
    right."""
    lines = []
    for name, (steps, values) in found.items():
        recent = [value for step, value in zip(steps, values, strict=True) if step > end - RECENT_STEPS]
        if recent:
            mean = sum(recent) / len(recent)
            extremes = f"lowest {min(recent):.4g}   highest {max(recent):.4g}"
            lines.append(f"{name}   current {recent[-1]:.4g}   {extremes}   mean {mean:.4g}")
    axes.annotate(
        "\n".join(lines),
        (0, -0.12),
        xycoords="axes fraction",
        va="top",
        fontsize=9,
        color="#444444",
        annotation_clip=False,
    )


def _find_fonts() -> list[str]:
    """Font families: matplotlib's own, and one with Chinese characters for those that it lacks."""
    from matplotlib import font_manager

    spec = importlib.util.find_spec("zhplot")  # not imported: that would change matplotlib's settings
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in Path(folder, "fonts").glob("*.ttf"):
            font_manager.fontManager.addfont(file)
            return ["DejaVu Sans", font_manager.FontProperties(fname=file).get_name()]
    return ["DejaVu Sans"]
