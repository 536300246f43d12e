"""Tells the user at the terminal what has become of a run: a notification in the app, the bell, a notice of the desktop
(OSC 9 or 777), and the terminal's title with the progress (OSC 9;4).

Sequences are written to a terminal only, and each kind can be switched off in the settings (`notify.bell`,
`notify.desktop`, `notify.title`, `notify.progress`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cockpit.connection.settings import Settings
from cockpit.language.translate import tr, tr_engine
from cockpit.state.formatting import format_number
from engine.protocol import states
from engine.protocol.messages import Run
from engine.protocol.terminal import show_controls

BEGUN = (states.PREPARING, states.RUNNING)
ASKED = "pause.asked"
LONGEST = 120
"""Characters of a notice or a title."""
PROGRESS = ("WezTerm", "ghostty")
"""Values of TERM_PROGRAM of terminals that show progress. Others may take the sequence for a notice."""


class News(NamedTuple):
    """What has become of a run. `severity` is Textual's."""

    title: str
    text: str
    severity: str = "information"


def find_news(before: Run | None, now: Run) -> News | None:
    """What the user should be told when a run's summary changes; None for what needs no word."""
    if before is None or (before.state, before.attempt) == (now.state, now.attempt):
        return None
    name = now.name or now.id
    match now.state:
        case states.COMPLETED:
            figures = [
                f"{key} {format_number(now.metrics[key])}" for key in ("train/loss", "eval/loss") if key in now.metrics
            ]
            return News(tr("{name} is completed", name=name), ", ".join([tr("step {step:,}", step=now.step), *figures]))
        case states.FAILED | states.LOST:
            why = tr_engine(now.problem.title if now.problem else now.reason)
            return News(f"{name} {'has failed' if now.state == states.FAILED else 'is lost'}", why or now.id, "error")
        case states.PAUSED if now.code != ASKED:
            return News(tr("{name} is paused", name=name), tr_engine(now.reason) or now.id, "warning")
        case _ if now.state in BEGUN and before.state == states.QUEUED and before.holders:
            return News(tr("{name} has begun", name=name), tr("its devices are free"))
    return None


def write_title(runs: Mapping[str, Run], selected: str | None) -> tuple[str, int | None]:
    """The terminal's title, and the progress in percent; None when nothing is trained."""
    live = [run for run in runs.values() if run.state in states.STARTED]
    run = next((run for run in live if run.id == selected), live[0] if live else None)
    if run is None:
        return "cockpit", None
    share = int(100 * min(1.0, run.step / run.max_steps)) if run.max_steps else None
    parts = [f"{share} %" if share is not None else run.state, run.name or run.id]
    more = tr(" and {live} more", live=len(live) - 1) if len(live) > 1 else ""
    return tr("{parts}{more} · cockpit", parts=" ".join(parts), more=more), share


class Alerts:
    """`write` sends a sequence to the terminal; None where there is none."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
        self._settings, self._environment = settings, environment
        self.write: Callable[[str], None] | None = None
        self._shown: tuple[str, int | None, bool] | None = None

    def tell(self, news: News) -> None:
        """Ring, and have the desktop show it."""
        if self.write is None:
            return
        if self._settings.get("notify.bell", True):
            self.write("\a")
        if self._settings.get("notify.desktop", True):
            title, text = _clean(news.title), _clean(news.text)
            if self._environment.get("TERM", "").startswith(("foot", "rxvt")):
                self.write(f"\x1b]777;notify;{title.replace(';', ',')};{text}\x1b\\")
            else:
                self.write(f"\x1b]9;{title}: {text}\x1b\\")

    def show(self, runs: Mapping[str, Run], selected: str | None) -> None:
        """Keep the title and the progress up to date. Nothing is written while they are."""
        if self.write is None:
            return
        caption, share = write_title(runs, selected)
        trouble = any(run.state == states.PAUSED and run.code != ASKED for run in runs.values())
        if self._shown == (caption, share, trouble):
            return
        first, self._shown = self._shown is None, (caption, share, trouble)
        if self._settings.get("notify.title", True):
            kept = "\x1b[22;0t" if first else ""
            self.write(f"{kept}\x1b]0;{_clean(caption)}\x1b\\")
        if self._shows_progress:
            kind = 0 if share is None else 4 if trouble else 1
            self.write(f"\x1b]9;4;{kind};{share or 0}\x1b\\")

    def close(self) -> None:
        """Give the terminal its title back."""
        if self.write is None or self._shown is None:
            return
        if self._settings.get("notify.title", True):
            self.write("\x1b]0;\x1b\\\x1b[23;0t")
        if self._shows_progress:
            self.write("\x1b]9;4;0;0\x1b\\")
        self._shown = None

    @property
    def _shows_progress(self) -> bool:
        found = self._environment
        known = found.get("TERM_PROGRAM") in PROGRESS or "WT_SESSION" in found or found.get("ConEmuANSI") == "ON"
        return self._settings.get("notify.progress", known)


def _clean(text: str) -> str:
    """Text that can end no sequence and begin no other."""
    return show_controls(" ".join(text.split()), keep="")[:LONGEST]
