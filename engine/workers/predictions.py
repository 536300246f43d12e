"""`cockpit eval --predictions`, in a process of its own: it needs the scoring libraries, but no engine and no model.

One JSON document goes to stdout, `{"result": …}` or `{"error": {code, title, cause, hint, place}}`, progress goes to
stderr. What was judged before an interrupt is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.status import Status

from engine.evaluation import predictions
from engine.evaluation.request import EvaluationRequest
from engine.protocol.console import GuardedConsole, text
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.terminal import guard, to_json


class Watch:
    def __init__(self, status: Status) -> None:
        self._status = status

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._status.update(text(f"{stage} {done} of {total}" if total else stage))

    def is_cancelled(self) -> bool:
        return False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("--home", required=True)
    arguments = parser.parse_args()
    paths = [Path(path).expanduser() for path in arguments.arguments["files"]]
    try:
        wanted = msgspec.convert(arguments.arguments["settings"], EvaluationRequest)
        with GuardedConsole(stderr=True).status("scoring") as status:
            result, *others = _evaluate(paths, wanted, Home.locate(arguments.home), Watch(status))
            if others:
                result["against"] = [predictions.add_comparison(result, other) for other in others]
    except ProblemError as error:
        return _print({"error": error.problem.document()})
    except (ValueError, OSError) as error:
        problem = Problem(code="request.invalid", title="These replies cannot be scored", cause=str(error))
        return _print({"error": problem.document()})
    except KeyboardInterrupt:
        return 130
    return _print({"result": result})


def _evaluate(paths: list[Path], wanted: EvaluationRequest, home: Home, watch: Watch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in paths:
        out = f"{wanted.out}-{path.stem}" if wanted.out and found else wanted.out
        found.append(predictions.evaluate(path, msgspec.structs.replace(wanted, out=out), home, watch))
    return found


def _print(document: dict[str, Any]) -> int:
    print(to_json(document))
    return 0


if __name__ == "__main__":
    guard()
    sys.exit(main())
