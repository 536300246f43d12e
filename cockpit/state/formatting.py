"""How the app writes figures: short, aligned, with their unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from textual.content import Content

STATES = {
    "queued": ("◌", "$foreground-muted"),
    "preparing": ("◔", "$secondary"),
    "running": ("●", "$success"),
    "paused": ("‖", "$warning"),
    "stopping": ("◍", "$warning"),
    "stopped": ("■", "$foreground-muted"),
    "completed": ("✓", "$success"),
    "failed": ("✗", "$error"),
    "lost": ("?", "$error"),
}
"""State of a run -> mark (a shape of its own, for NO_COLOR) and colour."""


def state_mark(state: str) -> Content:
    """The state with its mark, in its colour."""
    mark, colour = STATES.get(state, ("·", "$text"))
    return Content.styled(f"{mark} {state}", f"bold {colour}")


def number(value: float) -> str:
    """At most six characters: 0.25, 12, 3e-4, 1.2e6."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 99_995:
        return f"{value:.4g}"[:6]
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """1:05, 2:03:09, 3d 4h."""
    whole = int(max(0.0, seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def age(seconds: float) -> str:
    """now, 4 min, 3 h, 12 d."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return "now"


def size(count: float) -> str:
    """Bytes with a binary unit and at most three digits: 61.2G, 512M."""
    for unit in ("B", "K", "M", "G"):
        if count < 999.5:
            return f"{count:.1f}{unit}" if unit in "G" and count < 99.95 else f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.1f}T"


def big(count: float) -> str:
    """Counts with a decimal unit: 134.5M, 7.2B, 812."""
    for unit in ("", "k", "M", "B"):
        if count < 999.95:
            return (f"{count:.0f}" if count >= 100 or count == int(count) else f"{count:.1f}") + unit
        count /= 1000
    return f"{count:.1f}T"


def percent(share: float) -> str:
    """A share from 0 to 1: 62 %, and 0.7 % where whole numbers say nothing."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 9.95 and not math.isclose(value, round(value)) else f"{value:.0f} %"


def held(facts: Mapping[str, Any]) -> str:
    """What a reply out of a run's own process cost the run: seconds at each step boundary that it was written at."""
    first, last, boundaries = facts["first_step"], facts["last_step"], facts["boundaries"]
    steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
    each = f", {facts['held_seconds'] / boundaries:.2f} s a step" if boundaries > 1 else ""
    beside = f" beside {facts['step_seconds']:.2f} s" if facts.get("step_seconds") else ""
    return f"weights of {steps} · held training up {facts['held_seconds']:.2f} s{each}{beside}"
