"""The evaluation service: it evaluates targets, and shows and compares earlier evaluations.

Requests: `evaluate {target, directory, against, …settings}`, `listed {run}`, `replies {directory, start, count, by,
passed}`, `reply {directory, row}`, `compare {first, second}`. `evaluate` sends events `progress {stage, done, total,
target}` and can be cancelled; what it has done by then is kept, and the same request goes on from there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.evaluation import forgetting, history
from engine.evaluation import run as examine
from engine.evaluation.request import EvaluationRequest
from engine.models import libraries, targets
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.worker_link import Link
from engine.workers.service_loop import Cancelled, ErrorTexts, build_parser, serve_requests

if TYPE_CHECKING:
    from engine.evaluation.reward_scoring import PairScorer
    from engine.inference.loaded_model import LoadedModel

QUESTIONS = ("evaluate", "listed", "replies", "reply", "compare", "compare_runs")
_EVERY = 0.1
"""Seconds between two progress events."""


class Watch:
    """Sends the progress of one request, and raises Cancelled once it has been cancelled."""

    def __init__(self, link: Link, request: str, cancelled: set[str]) -> None:
        self._link, self._request, self._cancelled = link, request, cancelled
        self._sent, self._stage = 0.0, ""
        self.target = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.is_cancelled():
            raise Cancelled
        if stage != self._stage or time.monotonic() - self._sent >= _EVERY:
            self._sent, self._stage = time.monotonic(), stage
            self._link.send_event(self._request, "progress", stage=stage, done=done, total=total, target=self.target)

    def is_cancelled(self) -> bool:
        return self._request in self._cancelled


class Models:
    """Keeps one language model in memory; checkpoints of the same base are swapped on it."""

    def __init__(self, home: Home, watch: Watch) -> None:
        self._home, self._watch = home, watch
        self._loaded: LoadedModel | None = None

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> LoadedModel:
        """Raises ProblemError."""
        libraries.import_all()
        from engine.inference.loaded_model import load

        if self._loaded is not None and self._loaded.serves(target, dtype, quantization):
            self._loaded.swap(target)
            return self._loaded
        self._loaded = None
        self._loaded = load(target, home=self._home, dtype=dtype, quantization=quantization, progress=self._report)
        return self._loaded

    def reward_model(self, target: Target) -> PairScorer:
        """Raises ProblemError."""
        from engine.evaluation.reward_scoring import PairScorer

        return PairScorer(target, lambda done, total: self._report("loading", done, total))

    def _report(self, stage: str, done: int, total: int) -> None:
        self._watch(stage, done, total)


class Evaluate:
    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled

    def evaluate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The target's result; under `against` the result of each other target, and its comparison with the first.
        Raises ProblemError, ValueError."""
        other = {"target", "directory", "against", "request"}
        wanted = msgspec.convert(
            {name: value for name, value in arguments.items() if name not in other}, EvaluationRequest
        )
        directory = Path(arguments.get("directory") or self.home.root)
        watch = Watch(self.link, arguments.get("request", ""), self.cancelled)
        models = Models(self.home, watch)
        found: list[dict[str, Any]] = []
        against = list(arguments.get("against", ()))
        if wanted.forgetting and not against:
            against = [forgetting.find_base(targets.resolve(arguments["target"], self.home, directory), self.home)]
        for target in (arguments["target"], *against):
            watch.target = target
            settings = (
                msgspec.structs.replace(wanted, out=_name_folder(wanted.out, target))
                if found and wanted.out
                else wanted
            )
            found.append(examine.evaluate(target, settings, self.home, directory, models, watch))
        result, *others = found
        if others:
            watch("comparing", 0, 0)
            result = result | {
                "against": [
                    {**other, **history.compare_folders(Path(other["directory"]), Path(result["directory"]))}
                    for other in others
                ]
            }
        return result

    def listed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        run = self.home.run(arguments["run"])
        return {"evaluations": history.list_evaluations(run), "checkpoints": run.checkpoint_steps()}

    def replies(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return history.page_replies(
            Path(arguments["directory"]),
            arguments["start"],
            arguments["count"],
            arguments.get("by"),
            arguments.get("passed"),
        )

    def reply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return history.read_reply(Path(arguments["directory"]), arguments["row"])

    def compare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return history.compare_folders(Path(arguments["first"]), Path(arguments["second"]))

    def compare_runs(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Each further run against the first one: the newest evaluations of both on the same rows."""
        first, *others = (self.home.run(run) for run in arguments["runs"])
        return {"compared": {other.id: history.compare_newest(first, other) for other in others}}


def _name_folder(out: str | None, target: str) -> str:
    """The folder for the evaluation of another target."""
    return f"{out}-{examine.make_slug(target)}"


def main() -> None:
    arguments = build_parser().parse_args()
    cancelled: set[str] = set()
    home = Home.locate(arguments.home)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home, on_cancel=cancelled.add)
    worker = Evaluate(link, home, cancelled)
    serve_requests(
        link,
        cancelled,
        {name: getattr(worker, name) for name in QUESTIONS},
        ErrorTexts(
            "This cannot be evaluated",
            "The evaluation failed",
            "results so far are kept; run the same evaluation again to continue",
        ),
    )


if __name__ == "__main__":
    main()
