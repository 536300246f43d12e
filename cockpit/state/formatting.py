"""How numbers, durations, sizes and states are written: short, aligned, with their unit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cockpit.language.translate import count_forms, tr

if TYPE_CHECKING:
    from cockpit.content import Content

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
"""State of a run -> mark (each of another shape, for NO_COLOR) and colour."""


def format_state(state: str) -> Content:
    """The state with its mark, in its colour."""
    from cockpit.content import Content  # the verbs use this module too, and need no Textual

    mark, colour = STATES.get(state, ("·", "$text"))
    return Content.styled(f"{mark} {tr(state)}", f"bold {colour}")


def format_number(value: float) -> str:
    """At most six characters: 0.25, 12, 3e-4, 1.2e6."""
    if value == 0 or not math.isfinite(value):
        return f"{abs(value) if value == 0 else value:g}"
    if 0.001 <= abs(value) < 99_995:
        return f"{value:.4g}"[:6]
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def format_duration(seconds: float) -> str:
    """48 s, 3:07, 2:03:09, 3d 4h."""
    whole = int(max(0.0, seconds))
    hours, minutes = divmod(whole // 60, 60)
    if whole < 60:
        return f"{whole} s"
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def format_age(moment: float) -> str:
    """How long ago a moment (seconds since the epoch) was: now, 4 min, 3 h, 12 d; empty for 0."""
    if not moment:
        return ""
    seconds = time.time() - moment
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {tr(name)}"
    return tr("now")


def format_size(count: float) -> str:
    """Bytes with a binary unit and at most three digits: 61.2G, 512M."""
    for unit in ("B", "K", "M", "G"):
        if count < 999.5:
            return f"{count:.1f}{unit}" if unit in "G" and count < 99.95 else f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.1f}T"


def format_count(count: float) -> str:
    """Counts with a decimal unit: 134.5M, 7.2B, 812."""
    for unit in ("", "k", "M", "B"):
        if count < 999.95:
            return (f"{count:.0f}" if count >= 100 or count == int(count) else f"{count:.1f}") + unit
        count /= 1000
    return f"{count:.1f}T"


def format_epochs(count: float) -> str:
    """Epochs with as many digits as say something: 1, 0.62, 8.7."""
    return f"{count:.2f}".rstrip("0").rstrip(".") if count < 10 else f"{count:.1f}".removesuffix(".0")


def counted(number: float, noun: str) -> str:
    """A number with its noun: 1 epoch, 0.5 epochs, 1,200 rows."""
    amount = f"{number:,}" if isinstance(number, int) else format_epochs(number)
    one, several = count_forms(noun)
    return tr(one if number == 1 else several, count=amount)


def pad_left(text: str, cells: int) -> str:
    """The text at the right of so many cells. Chinese characters take two each."""
    from rich.cells import cell_len

    return " " * (cells - cell_len(text)) + text


def format_percent(share: float) -> str:
    """A share from 0 to 1: 62 %, and 0.7 % where a whole number would not be precise enough."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 9.95 and not math.isclose(value, round(value)) else f"{value:.0f} %"


def format_hot_cost(facts: Mapping[str, Any]) -> str:
    """How long a reply from a run's own process delayed its training."""
    first, last, boundaries = facts["first_step"], facts["last_step"], facts["boundaries"]
    steps = (
        tr("step {first:,}", first=first)
        if first == last
        else tr("steps {first:,} to {last:,}", first=first, last=last)
    )
    each = (
        tr(", {held_seconds:.2f} s a step", held_seconds=facts["held_seconds"] / boundaries) if boundaries > 1 else ""
    )
    compared = (
        tr(" on top of {step_seconds:.2f} s", step_seconds=facts["step_seconds"]) if facts.get("step_seconds") else ""
    )
    return tr(
        "weights of {steps} · delayed training by {held_seconds:.2f} s{each}{compared}",
        steps=steps,
        held_seconds=facts["held_seconds"],
        each=each,
        compared=compared,
    )
