"""An app that is left open: memory and the cost of a frame stay as they are."""

from __future__ import annotations

import os

import pytest

from bench.soak import Watch, compare, simulate
from cockpit.state import app_state

LONG = "COCKPIT_LONG_TESTS" in os.environ


@pytest.mark.timeout(3600 if LONG else 300)
async def test_memory_and_frames_stay_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve simulated hours with a thousand runs and a million points if COCKPIT_LONG_TESTS is set; else less of it,
    with smaller bounds, so that they are reached as well."""
    watch = Watch()
    if not LONG:
        monkeypatch.setattr(app_state, "MAX_SAMPLES", 40)
        monkeypatch.setattr(app_state, "MAX_ENTRIES", 15)
        watch = Watch(hours=0.4, looks=6, runs=60, points=40_000, entries=144)
    figures = await simulate(watch)
    assert figures[-1]["points"] >= watch.points
    assert compare(figures, "blocks") < 1.1
    if LONG:
        assert compare(figures, "resident_mb") < 1.1
    assert compare(figures, "frame_ms") < (1.1 if LONG else 2.0), figures  # few frames: the machine's noise
