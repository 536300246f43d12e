"""The service that says what a profile takes while it is being written, and what would make it fit.

Requests: `forecast {profile, directory}`, `fit {profile, directory, cards}`. Both can be cancelled, between two traced
steps. The process stays between requests, since it takes longer to import the libraries than to trace a step.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config import forecasts
from engine.config.profile import Profile, ProfileError, parse
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.worker_link import Link
from engine.training.forecast import hosts
from engine.workers.forecast import find_ways, make
from engine.workers.service_loop import Cancelled, ErrorTexts, build_parser, serve_requests

QUESTIONS = ("forecast", "fit")
_LEFT_OUT = ("terms", "inputs", "base_inputs")
"""What of a forecast is not sent."""

_KEPT = 64
"""Forecasts that the process keeps itself."""


class Fit:
    def __init__(self, home: Home, cancelled: set[str]) -> None:
        self.home, self.cancelled = home, cancelled
        self._assumed: dict[str, dict[str, Any]] = {}
        """Forecasts of profiles whose rows are not prepared. They are only true until the rows are."""

    def forecast(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The forecast of a run on this host, from the kept ones if it is among them. Raises ProblemError."""
        profile = self._read(arguments)
        host = hosts.find(profile, None, None)
        key = forecasts.compute_key(profile, host.place, host.cards)
        found = self._find_kept(key, profile)
        if found is None:
            found = self._answer(
                arguments, lambda gone: make(profile, self.home, host, lambda *_: False, cancelled=gone)[0]
            )
            if not found["rows_measured"]:
                self._assumed = {**dict(list(self._assumed.items())[1 - _KEPT :]), key: found}
        disk = forecasts.read_free_disk(self.home)
        verdict = forecasts.judge_all(found, host.card_bytes, host.host_bytes, disk)  # more or less may be free by now
        shown = {name: value for name, value in found.items() if name not in _LEFT_OUT}
        return {**shown, "verdict": verdict}

    def fit(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The ways in which a profile fits, each with all the settings that it takes. Raises ProblemError."""
        profile, wanted = self._read(arguments), arguments.get("cards", "auto")
        host, spread, found = self._answer(arguments, lambda gone: find_ways(profile, self.home, wanted, gone))
        ways = [{**way, "settings": {**spread, **way["settings"]}} for way in found]
        return {"cards": host.cards, "card_bytes": host.card_bytes, "ways": ways}

    def _read(self, arguments: dict[str, Any]) -> Profile:
        directory = Path(arguments.get("directory") or Path.cwd())
        try:
            return parse(arguments["profile"], "profile", directory, home=self.home, forecast=True)
        except ProfileError as error:
            raise ProblemError(
                Problem(
                    code="profile.invalid",
                    title="The profile is not valid",
                    cause=str(error),
                    hint="fix it on the Profile screen",
                )
            ) from None

    def _find_kept(self, key: str, profile: Profile) -> dict[str, Any] | None:
        kept = forecasts.read(self.home, key)
        if kept is not None and forecasts.is_current(kept):
            return kept
        if key in self._assumed:
            from engine.prep.prepare import find_prepared

            if find_prepared(profile, self.home) is None:
                return self._assumed[key]
            del self._assumed[key]
        return None

    def _answer(self, arguments: dict[str, Any], compute: Callable[[Callable[[], bool]], Any]) -> Any:
        """The result of `compute`, which is told when its request is cancelled. Raises Cancelled, ProblemError."""
        from engine.training.forecast.estimate import Abandoned

        request = arguments.get("request", "")
        try:
            return compute(lambda: request in self.cancelled)
        except Abandoned:
            raise Cancelled from None


def main() -> None:
    arguments = build_parser().parse_args()
    os.nice(5)  # runs on this host come first
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    cancelled: set[str] = set()
    home = Home.locate(arguments.home)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home, on_cancel=cancelled.add)
    worker = Fit(home, cancelled)
    serve_requests(
        link,
        cancelled,
        {name: getattr(worker, name) for name in QUESTIONS},
        ErrorTexts("There is no forecast for this profile", "The forecast failed"),
    )


if __name__ == "__main__":
    main()
