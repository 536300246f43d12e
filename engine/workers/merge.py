"""`cockpit merge`: combines adapters or models into one, in a process that the command line starts.

Exit status: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from engine.export.combine import Recipe, combine, list_last
from engine.models import targets
from engine.protocol.console import GuardedConsole
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, to_json

ERR = GuardedConsole(stderr=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="cockpit merge")
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="linear")
    parser.add_argument("--weights", default="")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base")
    parser.add_argument("--last", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        merged = _merge(Home(arguments.home), arguments)
    except (ProblemError, OSError) as error:
        problem = error.problem if isinstance(error, ProblemError) else _unwritable(arguments.out, error)
        ERR.print(": ".join(filter(None, (problem.title, problem.cause))), style="bold red", soft_wrap=True)
        if problem.hint:
            ERR.print(f"→ {problem.hint}", style="cyan", soft_wrap=True)
        if arguments.json:
            print(to_json({"error": problem.document()}))
        return 2
    print(to_json(merged) if arguments.json else f"{merged['directory']}  ({merged['kind']})")
    return 0


def _merge(home: Home, arguments: argparse.Namespace) -> dict[str, object]:
    names = list(arguments.targets)
    if arguments.last is not None:
        if len(names) > 1:
            raise ProblemError(Problem(code="merge.refused", title="--last goes with one run"))
        names = list_last(names[0], arguments.last, home)
    try:
        weights = tuple(float(part) for part in arguments.weights.split(",") if part)
    except ValueError:
        raise ProblemError(
            Problem(code="merge.refused", title=f"--weights takes numbers with commas, not {arguments.weights!r}")
        )
    here = Path.cwd()
    chosen = [targets.resolve(name, home, here) for name in names]
    base = targets.resolve(arguments.base, home, here) if arguments.base else None
    recipe = Recipe(arguments.method, weights, arguments.density, arguments.seed)
    out = arguments.out.expanduser().absolute()
    kind = combine(chosen, out, recipe, base, home, _report_stages())
    return {"directory": str(out), "kind": kind, "merged": [target.label for target in chosen]}


def _report_stages() -> Callable[[str, int, int], None]:
    """Prints each stage once, when it begins."""
    told = ""

    def report(stage: str, done: int, total: int) -> None:
        nonlocal told
        if stage != told:
            told = stage
            ERR.print(stage, style="dim", soft_wrap=True)

    return report


def _unwritable(out: Path, error: OSError) -> Problem:
    return Problem(code="file.unwritable", title=f"{out} cannot be written", cause=error.strerror or str(error))


if __name__ == "__main__":
    guard()
    sys.exit(main())
