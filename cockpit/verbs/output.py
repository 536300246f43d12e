"""What a verb prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.protocol.messages import Problem, ProblemError, ServiceEvent

PIPE_WIDTH = 200
"""Columns of a table that no terminal bounds."""


def emit(document: Any) -> None:
    """One JSON document, or one of several lines of a stream. What is not finite becomes null."""
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")


def say(text: str, style: str = "") -> None:
    """A line for the person at the terminal."""
    console().print(Text(text, style=style), soft_wrap=True)


def console() -> Console:
    return Console(stderr=True, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A result as a table, whole rows on one line each when stdout is no terminal."""
    drawn = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False).print(drawn)


def show_problem(problem: Problem) -> None:
    """Title, cause and hint, each on lines of its own."""
    say(problem.title, "bold red")
    if problem.cause:
        say(problem.cause)
    if problem.hint:
        say(f"→ {problem.hint}", "cyan")


def report(error: Exception, *, as_json: bool) -> None:
    """An error that ends a verb: people read stderr, scripts one `{"error": …}` on stdout. Raises again what is a bug of ours."""
    problem, further = _describe(error)
    show_problem(problem)
    if as_json:
        emit({"error": {"title": problem.title, "cause": problem.cause, "hint": problem.hint, **further}})


def _describe(error: Exception) -> tuple[Problem, dict[str, Any]]:
    if isinstance(error, ProblemError):
        return error.problem, {}
    if hasattr(error, "issues"):  # profile.ProfileError, whose module costs a tenth of a second to import
        count = len(error.issues)
        title = f"The profile has {count} problems" if count > 1 else "The profile has a problem"
        return Problem(title=title, cause=str(error)), {"issues": error.issues}
    if isinstance(error, OSError):
        return Problem(title=error.strerror or str(error), cause=str(error.filename or "")), {}
    if isinstance(error, ValueError):
        return Problem(title=str(error), hint=getattr(error, "hint", "")), {}
    raise error


def format_progress(event: ServiceEvent) -> str:
    """What a service is doing and how much of it is done: `reading weights 40%`."""
    done, total = event.data.get("done", 0), event.data.get("total", 0)
    share = f" {done / total:.0%}" if total else ""
    return f"{event.data.get('stage', event.kind)}{share}"


def duration(seconds: float) -> str:
    """`48 s`, `3:07 min`, `2:05 h`, `3 d`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02} min"
    if seconds < 86400 * 2:
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02} h"
    return f"{seconds / 86400:.0f} d"


def age(moment: float) -> str:
    """How long ago; empty for a moment that never was."""
    return f"{duration(max(0.0, time.time() - moment))} ago" if moment else ""


def number(value: float | None) -> str:
    """A metric for people: four significant digits; `–` for none, or for one that was not finite."""
    return "–" if value is None else f"{value:.4g}"
