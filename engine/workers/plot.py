"""`cockpit plot RUN`: draws a run's curves as a PNG, in a process that the command line starts, or a run at its
checkpoints.

Exit status: 0 done, 1 there is nothing to draw, 2 a wrong request.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ruamel.yaml import YAML

from engine.models.targets import find_run
from engine.protocol.console import GuardedConsole
from engine.protocol.home import Home, make_private, write_private
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, to_json
from engine.training import plots

ERR = GuardedConsole(stderr=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="cockpit plot")
    parser.add_argument("run")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", action="append", default=[])
    parser.add_argument("--out", type=Path, action="append", default=[])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        files = _plot(Home(arguments.home), arguments)
    except ProblemError as error:
        problem = error.problem
        ERR.print(": ".join(filter(None, (problem.title, problem.cause))), style="bold red", soft_wrap=True)
        if problem.hint:
            ERR.print(f"→ {problem.hint}", style="cyan", soft_wrap=True)
        if arguments.json:
            print(to_json({"error": problem.document()}))
        return 1 if problem.code == "plot.nothing" else 2
    print(to_json({"path": str(files[0])}) if arguments.json else files[0])
    return 0


def _plot(home: Home, arguments: argparse.Namespace) -> list[Path]:
    """Draw the curves, write them to each file, and return the files. Raises ProblemError."""
    run = find_run(arguments.run, home)
    if run is None:
        raise ProblemError(
            Problem(code="run.not_found", title=f"There is no run {arguments.run!r}", hint="`cockpit runs` lists them")
        )
    found = plots.read_curves(run, arguments.name or ["train/loss", "eval/loss"])
    if not found:
        hint = f"`cockpit metrics {run.id}` lists its metrics"
        raise ProblemError(Problem(code="plot.nothing", title=f"{run.id} has nothing to draw yet", hint=hint))
    last = max(steps[-1] for steps, _ in found.values())
    files = arguments.out or [run.plots / f"{'loss' if not arguments.name else 'metrics'}_curve_step_{last}.png"]
    drawn = plots.draw_curves(_make_title(run.id, run.profile), found)
    for file in files:
        try:
            if arguments.out:
                file.parent.mkdir(parents=True, exist_ok=True)
            else:
                make_private(file.parent)
            write_private(file, drawn)
        except OSError as error:
            raise ProblemError(
                Problem(code="file.unwritable", title=f"{file} cannot be written", cause=error.strerror or str(error))
            )
    return [file.absolute() for file in files]


def _make_title(run: str, profile: Path) -> str:
    """The run's id, and the description in its profile."""
    description = YAML(typ="safe").load(profile.read_text(encoding="utf-8")).get("description")
    return f"{run} · {description}" if description else run


if __name__ == "__main__":
    guard()
    sys.exit(main())
