"""`cockpit model find | pull | verify`, in a process of its own: it needs the model libraries, which the command line
does not load.

Results go to stdout, progress and problems to stderr. Exit status: 0 done, 1 damaged or failed, 2 a wrong request, 130
interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TimeElapsedColumn
from rich.table import Table

from engine.models import catalogue, folders, hub, limits, targets, template_guard
from engine.models import embedded as embedded_model
from engine.models.find import find
from engine.protocol.console import GuardedConsole, text, text_column
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, to_json

OUT, ERR = GuardedConsole(), GuardedConsole(stderr=True)


def run_find(home: Home, arguments: argparse.Namespace) -> int:
    """List the models on this machine, damaged ones included."""
    found = find(home, arguments.folders)
    if arguments.json:
        print(to_json([dataclasses.asdict(each) | {"path": str(each.path)} for each in found]))
        return 0
    table = Table("name", "kind", "where", "size", "state", box=None, pad_edge=False)
    for each in found:
        state = text("; ".join(each.problems), "red") if each.problems else text("whole")
        table.add_row(text(each.name), each.kind, text(each.where), f"{each.size / 1e6:.0f} MB", state)
    for name in [name for name in catalogue.CATALOGUE if not (home.models / name).is_dir()]:
        table.add_row(name, "model", "catalogue", "", f"not installed: cockpit model pull {name}")
    OUT.print(table)
    return 0


def run_pull(home: Home, arguments: argparse.Namespace) -> int:
    """Fetch a model of the catalogue or the hub, and check it."""
    target = targets.resolve(arguments.name, home, Path.cwd())
    try:
        folder = _pull(target, home)
    except ProblemError as error:
        _print_problem(arguments.json, error.problem)
        return 1
    wrong = folders.find_problems(folder)
    _print_result(arguments.json, {"name": arguments.name, "path": str(folder), "problems": wrong}, str(folder), wrong)
    return 1 if wrong else 0


def _pull(target: targets.Target, home: Home) -> Path:
    if target.on_hub:
        return hub.pull(target.base)
    if target.catalogue:
        with _show_progress() as progress:
            return catalogue.pull(target.catalogue, home, progress)
    return target.folder


def run_verify(home: Home, arguments: argparse.Namespace) -> int:
    """Check headers, index, tokenizer, and every hash that is known."""
    folder = arguments.folder if arguments.folder.is_dir() else home.models / arguments.folder
    if not folder.is_dir():
        raise ProblemError(
            Problem(
                code="file.not_found",
                title=f"There is no folder {arguments.folder}",
                hint="`cockpit model find` lists models",
            )
        )
    wrong = folders.find_problems(folder)
    wrong += [] if wrong else template_guard.find_faults(folder)
    if not wrong and (beyond := limits.find_vocabulary_problem(folder, folder)):
        wrong = [f"{beyond}: enlarge the embedding, or take the tokens out of the tokenizer's files"]
    hashed = 0
    if not wrong:
        with _show_progress() as progress:
            hashed, wrong = folders.check_hashes(folder, progress)
    family = folders.describe_glm(folder)
    good = f"{folder} is whole" + (f"; {hashed} hashes agree" if hashed else "; no hash is known to compare with")
    good += f"\n{family}" if family else ""
    document = {"path": str(folder), "ok": not wrong, "hashed": hashed, "problems": wrong, "family": family}
    _print_result(arguments.json, document, good, wrong)
    return 1 if wrong else 0


def _print_result(as_json: bool, document: dict[str, Any], good: str, wrong: list[str]) -> None:
    if as_json:
        print(to_json(document))
    elif wrong:
        for line in wrong:
            ERR.print(text("✗ ", "red").append_text(text(line)), soft_wrap=True)
    else:
        print(good)


def _print_problem(as_json: bool, problem: Problem) -> None:
    if as_json:
        print(to_json({"error": problem.document()}))
    else:
        ERR.print(text("✗ ", "red").append_text(text(str(problem))), soft_wrap=True)


@contextmanager
def _show_progress() -> Iterator[embedded_model.Progress]:
    """A progress bar on a terminal, else a line for each stage."""
    if not ERR.is_terminal:
        stages: list[str] = []

        def line(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages.append(stage)
                ERR.print(stage)

        yield line
        return
    columns = (text_column("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total or None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="cockpit model")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home")
    shared.add_argument("--json", action="store_true")
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("find", parents=[shared], help="models on this machine, and what is damaged")
    verb.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    verb.set_defaults(run=run_find)
    verb = verbs.add_parser("pull", parents=[shared], help="fetch a catalogue model or a hub id (org/name)")
    verb.add_argument("name", metavar="NAME")
    verb.set_defaults(run=run_pull)
    verb = verbs.add_parser("verify", parents=[shared], help="is a model folder whole?")
    verb.add_argument("folder", type=Path, metavar="FOLDER")
    verb.set_defaults(run=run_verify)
    arguments = parser.parse_args()
    try:
        status: int = arguments.run(Home.locate(arguments.home), arguments)
        return status
    except ProblemError as error:
        _print_problem(arguments.json, error.problem)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    guard()
    sys.exit(main())
