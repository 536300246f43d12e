"""The evaluation service: targets measured on rows, what was measured before, and comparisons of it.

Questions: `evaluate {target, directory, against, …settings}`, `listed {run}`, `replies {directory, start, count, by, passed}`,
`reply {directory, row}`, `compare {first, second}`. `evaluate` says `progress {stage, done, total, target}` on the way and can be cancelled; what
it has done by then is kept, and the same question goes on from there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.evaluation import history
from engine.evaluation import run as examine
from engine.evaluation.request import EvaluationRequest
from engine.models.targets import Target
from engine.protocol.home import Home
from engine.protocol.worker_link import Link
from engine.workers.questions import Cancelled, Wording, attend, parser

if TYPE_CHECKING:
    from engine.evaluation.reward_scoring import PairScorer
    from engine.inference.loaded_model import LoadedModel

QUESTIONS = ("evaluate", "listed", "replies", "reply", "compare")
_EVERY = 0.1
"""Seconds between two words of progress."""


class Watch:
    """Tells of one question, and raises Cancelled once it is given up."""

    def __init__(self, link: Link, request: str, cancelled: set[str]) -> None:
        self._link, self._request, self._cancelled = link, request, cancelled
        self._told, self._stage = 0.0, ""
        self.target = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.is_cancelled():
            raise Cancelled
        if stage != self._stage or time.monotonic() - self._told >= _EVERY:
            self._told, self._stage = time.monotonic(), stage
            self._link.say(self._request, "progress", stage=stage, done=done, total=total, target=self.target)

    def is_cancelled(self) -> bool:
        return self._request in self._cancelled


class Models:
    """One language model at a time; checkpoints of one base are changed on it."""

    def __init__(self, home: Home, watch: Watch) -> None:
        self._home, self._watch = home, watch
        self._loaded: LoadedModel | None = None

    def language_model(self, target: Target, dtype: str | None, quantization: str | None) -> LoadedModel:
        """Raises ProblemError."""
        from engine.inference.loaded_model import load

        if self._loaded is not None and self._loaded.serves(target, dtype, quantization):
            self._loaded.swap(target)
            return self._loaded
        self._loaded = None
        self._loaded = load(target, home=self._home, dtype=dtype, quantization=quantization, progress=self._told)
        return self._loaded

    def reward_model(self, target: Target) -> PairScorer:
        """Raises ProblemError."""
        from engine.evaluation.reward_scoring import PairScorer

        return PairScorer(target, lambda done, total: self._told("loading", done, total))

    def _told(self, stage: str, done: int, total: int) -> None:
        self._watch(stage, done, total)


class Evaluate:
    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled

    def evaluate(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The target's result; under `against`, of each other target: its result, and the comparison of the two. Raises ProblemError,
        ValueError."""
        named = {"target", "directory", "against", "request"}
        wanted = msgspec.convert({name: value for name, value in asked.items() if name not in named}, EvaluationRequest)
        directory = Path(asked.get("directory") or self.home.root)
        watch = Watch(self.link, asked.get("request", ""), self.cancelled)
        models = Models(self.home, watch)
        found: list[dict[str, Any]] = []
        for target in (asked["target"], *asked.get("against", ())):
            watch.target = target
            place = msgspec.structs.replace(wanted, out=_beside(wanted.out, target)) if found and wanted.out else wanted
            found.append(examine.evaluate(target, place, self.home, directory, models, watch))
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

    def listed(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.home.run(asked["run"])
        return {"evaluations": history.list_evaluations(run), "checkpoints": run.checkpoint_steps()}

    def replies(self, asked: dict[str, Any]) -> dict[str, Any]:
        return history.page_replies(
            Path(asked["directory"]), asked["start"], asked["count"], asked.get("by"), asked.get("passed")
        )

    def reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        return history.read_reply(Path(asked["directory"]), asked["row"])

    def compare(self, asked: dict[str, Any]) -> dict[str, Any]:
        return history.compare_folders(Path(asked["first"]), Path(asked["second"]))


def _beside(out: str | None, target: str) -> str:
    """The folder of another target's evaluation."""
    return f"{out}-{examine.make_slug(target)}"


def main() -> None:
    arguments = parser().parse_args()
    cancelled: set[str] = set()
    link = Link(arguments.address, arguments.job, arguments.attempt, on_cancel=cancelled.add)
    worker = Evaluate(link, Home.locate(arguments.home), cancelled)
    attend(
        link,
        cancelled,
        {name: getattr(worker, name) for name in QUESTIONS},
        Wording(
            "This cannot be evaluated",
            "The evaluation failed",
            "what was measured is kept; the same evaluation goes on from there",
        ),
    )


if __name__ == "__main__":
    main()
