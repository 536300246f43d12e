"""Printing for verbs: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from cockpit import remote_names
from cockpit.language.translate import tr, tr_engine
from engine.protocol.codes import UNKNOWN
from engine.protocol.console import GuardedConsole, text
from engine.protocol.messages import Problem, ProblemError, ServiceEvent
from engine.protocol.terminal import escape_json, show_controls

if TYPE_CHECKING:
    from engine.protocol.client import Client

PIPE_WIDTH = 200
"""Columns of a table when stdout is not a terminal."""


def emit(document: Any) -> None:
    """Print one JSON document, or one line of a stream. Numbers that are not finite become null, and control characters
    are escaped."""
    sys.stdout.write(escape_json(msgspec.json.encode(document).decode()) + "\n")


def say(line: str, style: str = "") -> None:
    """Print a line for people, to stderr."""
    console().print(text(line, style), soft_wrap=True)


def console() -> GuardedConsole:
    return GuardedConsole(stderr=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 0) -> None:
    """Print a result as a table. The column with the index `names` names each row and is on one line; where the
    terminal is too narrow for it, lines run on. In the others words are wrapped, and long ones broken: nothing is cut.
    When stdout is not a terminal, each row is one line."""
    listed = [tuple(map(text, row)) for row in rows]
    name = max((row[names].cell_len for row in listed if row), default=0)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for at, column in enumerate(columns):
        named = at == names
        drawn.add_column(show_controls(tr(column)), no_wrap=named, min_width=name if named else None, overflow="fold")
    for row in listed:
        drawn.add_row(*row)
    console = GuardedConsole(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.width = max(console.width, name + 12 * (len(columns) - 1))
    console.print(drawn)


def show_problem(problem: Problem) -> None:
    """Print title, cause and hint, each on lines of its own."""
    say(tr_engine(problem.title), "bold red")
    if problem.cause:
        say(tr_engine(problem.cause))
    if problem.hint:
        say(f"→ {remote_names.name_in(tr_engine(problem.hint), remote_names.command)}", "cyan")
    if problem.code != UNKNOWN and sys.stderr.isatty():
        say(tr("more about it: cockpit explain {code}", code=problem.code), "dim")


def say_warning(client: Client) -> None:
    """Print what the user should know about an engine that was started just now."""
    if client.warning is not None:
        show_problem(client.warning)


def report(error: Exception, *, as_json: bool) -> None:
    """Report an error that ends a verb: on stderr for people, and with `as_json` as `{"error": …}` on stdout. Raises
    programming errors again."""
    problem, further = _describe(error)
    show_problem(problem)
    if as_json:
        emit({"error": {**problem.document(), **further}})


def _describe(error: Exception) -> tuple[Problem, dict[str, Any]]:
    if isinstance(error, ProblemError):
        return error.problem, {}
    if hasattr(error, "issues"):  # profile.ProfileError, whose module takes a tenth of a second to import
        count = len(error.issues)
        title = tr("The profile has {count} problems", count=count) if count > 1 else tr("The profile has a problem")
        place = next((issue.place for issue in error.issues if issue.line), "")
        problem = Problem(code=getattr(error, "code", "profile.invalid"), title=title, cause=str(error), place=place)
        return problem, {"issues": error.issues}
    if isinstance(error, OSError):
        return Problem(code="file.failed", title=error.strerror or str(error), cause=str(error.filename or "")), {}
    if isinstance(error, ValueError):
        return Problem(
            code=getattr(error, "code", "request.invalid"), title=str(error), hint=getattr(error, "hint", "")
        ), {}
    raise error


def format_progress(event: ServiceEvent) -> str:
    """What a service is doing and how much of it is done: `reading weights 40%`."""
    done, total = event.data.get("done", 0), event.data.get("total", 0)
    share = f" {done / total:.0%}" if total else ""
    return f"{event.data.get('stage', event.kind)}{share}"


def format_metric(value: float | None) -> str:
    """A metric for people, with four significant digits; `–` for a value that is missing or not finite."""
    return "–" if value is None else f"{value:.4g}"
