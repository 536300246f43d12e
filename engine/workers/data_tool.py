"""`cockpit data …` and `cockpit tokenizer …`, in a process of their own: they need the data libraries, which the
command line does not load.

Results go to stdout, progress and problems to stderr. Exit status: 0 done, 1 the work failed, 2 a wrong request, 130
interrupted. The work done before an interrupt or a kill is kept: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from engine.models import tokenizers
from engine.prep.verbs import VERBS
from engine.protocol.console import GuardedConsole, text, text_column
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, to_json

OUT, ERR = GuardedConsole(), GuardedConsole(stderr=True)

Report = Callable[[str, int, int], None]
"""`(phase, done, total)`."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("group")
    parser.add_argument("verb")
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("--home")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tokenizers.leave_out_torch()
    verb = importlib.import_module(VERBS[f"{arguments.group} {arguments.verb}"])
    try:
        with _show_progress() as report:
            result: dict[str, Any] = verb.run(
                Home.locate(arguments.home), argparse.Namespace(**arguments.arguments), report
            )
    except ProblemError as error:
        return _print_problem(arguments.json, error.problem)
    except (ValueError, OSError) as error:
        return _print_problem(
            arguments.json,
            Problem(
                code="request.invalid",
                title=f"cockpit {arguments.group} {arguments.verb} failed",
                cause=str(error),
            ),
        )
    except KeyboardInterrupt:
        ERR.print("interrupted; run the same command again to continue")
        return 130
    if arguments.json:
        print(to_json(result))
    elif hasattr(verb, "describe"):
        OUT.print(text(verb.describe(result)), soft_wrap=True)
    else:
        _print_result(result)
    return 0


def _print_problem(as_json: bool, problem: Problem) -> int:
    if as_json:
        print(to_json({"error": problem.document()}))
    else:
        ERR.print(text("✗ ", "red").append_text(text(str(problem))), soft_wrap=True)
    return 2


def _print_result(result: dict[str, Any]) -> None:
    """Print figures by name, nested ones indented under their name."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # paths are copied from here, so they are never shortened
    for name, value in _format_rows(result):
        table.add_row(text(name), text(value))
    OUT.print(table)


def _format_rows(result: dict[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in result.items():
        label = indent + name.replace("_", " ")
        if isinstance(value, dict) and value:
            yield label, ""
            yield from _format_rows({str(key): each for key, each in value.items()}, indent + "  ")
        elif isinstance(value, float):
            yield label, f"{value:.4g}"
        elif isinstance(value, (str, int)):
            yield label, str(value)
        else:
            yield label, json.dumps(value, ensure_ascii=False)


@contextmanager
def _show_progress() -> Iterator[Report]:
    """A progress bar for each phase on a terminal, else a line."""
    if not ERR.is_terminal:
        phases: list[str] = []

        def line(phase: str, done: int, total: int) -> None:
            if phase not in phases:
                phases.append(phase)
                ERR.print(phase)

        yield line
        return
    columns = (
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def bar(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total or None)
            progress.update(tasks[phase], completed=done, total=total or None)

        yield bar


if __name__ == "__main__":
    guard()
    sys.exit(main())
