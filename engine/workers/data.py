"""The data service: it shows what a profile would train on, row by row and token by token.

Requests: `open {profile, directory}`, `rows {part, start, count}`, `narrow {part, query}`, `tokens {part, index}`,
`rendered {part, index}`, `stats {part}`, `stages {until}`, `prepare {}`, `batch {step}`, `decide {at, decision}`,
`reread {}`, `draft {name}`, `worst {run, by, top[, drop, only, weight]}`, `keep_row {path, directory, messages[,
run]}`. `open`, `narrow`, `stats`, `stages`, `prepare`, `reread` and `draft` send events `progress {phase, done, total}`
and can be cancelled; what `prepare` has done by then is kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config.profile import ProfileError, parse
from engine.prep import draft, partial, search
from engine.prep.browse import Browser
from engine.prep.prepare import prepare
from engine.prep.stages import pretokenized
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.worker_link import Link
from engine.workers.service_loop import Cancelled, ErrorTexts, build_parser, serve_requests

QUESTIONS = (
    *("open", "rows", "narrow", "tokens", "rendered", "stats"),
    *("prepare", "batch", "decide", "reread", "stages", "draft", "worst", "keep_row"),
)
_EVERY = 0.1
"""Seconds between two progress events."""


class Data:
    """At most one open profile, and its browser."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled
        self.browser: Browser | None = None
        self.prepared: dict[str, Any] | None = None

    def open(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Read a profile's sources once. Raises ProblemError."""
        directory = Path(arguments.get("directory") or Path.cwd())
        self.browser = self.prepared = None
        try:
            profile = parse(arguments["profile"], "profile", directory, home=self.home)
        except ProfileError as error:
            raise ProblemError(
                Problem(
                    code="profile.invalid",
                    title="The profile is not valid",
                    cause=str(error),
                    hint="fix it on the Profile screen",
                )
            )
        self.browser = Browser(profile, self.home, self._progress(arguments))
        return self.browser.summary()

    def rows(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._require_browser().rows(arguments.get("part", "train"), arguments["start"], arguments["count"])

    def tokens(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._require_browser().tokens(arguments.get("part", "train"), arguments["index"])

    def narrow(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a query that cannot be read."""
        browser, part = self._require_browser(), arguments.get("part", "train")
        return {"total": browser.narrow(part, search.parse(arguments["query"]), self._progress(arguments))}

    def rendered(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._require_browser().render(arguments.get("part", "train"), arguments["index"])

    def stats(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._require_browser().stats(arguments.get("part", "train"), self._progress(arguments))

    def stages(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the stages up to and including `until`; stages that were done before come from the cache. From then on
        the rows after that stage are shown, or those of the sources when `until` is empty. Returns the counts of the
        `stages`, the rows of the `parts`, the `decisions`, and for `tokenize` also the result of `prepare`. Raises
        ValueError, ProblemError."""
        browser, report, name = self._require_browser(), self._progress(arguments), arguments["until"]
        if not name:
            return {"stages": [], "parts": browser.show(None, report), "decisions": browser.decisions()}
        if name == partial.TOKENIZE and pretokenized.find_folders(browser.profile.data, browser.profile.directory):
            return {**self.prepare(arguments), "parts": browser.totals(), "decisions": {}}
        left = partial.run_until(
            browser.profile, name, self.home, lambda phase, done, total: report(done, total, phase=phase)
        )
        if left.expansion:
            browser.add_review(left.expansion, left.forms)
        parts = browser.show(left.rows, report)
        done = self.prepare(arguments) if name == partial.TOKENIZE else {"stages": left.rows.stages}
        return {**done, "parts": parts, "decisions": browser.decisions()}

    def prepare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run all stages, as a run does first; quick when they have been done before. Raises ProblemError."""
        report = self._progress(arguments)
        self.prepared = prepare(
            self._require_browser().profile, self.home, lambda phase, done, total: report(done, total, phase=phase)
        )
        if self.prepared["vocabulary"]:
            self._require_browser().use_tokenizer(Path(self.prepared["tokenizer"]))
        return {key: value for key, value in self.prepared.items() if key != "lock"}

    def decide(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Accept or drop an expanded row. The sources are read again by `reread`. Raises ValueError."""
        self.prepared = None
        return self._require_browser().decide(arguments["at"], arguments["decision"])

    def reread(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return self._require_browser().reread(self._progress(arguments))

    def draft(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A profile that trains on what is open, and the facts that it was written from, in `says` as sentences. Raises
        ValueError, ProblemError."""
        found = draft.draft_from(self._require_browser(), self.home, arguments["name"], self._progress(arguments))
        return {**found, "says": draft.describe(found)}

    def batch(self, arguments: dict[str, Any]) -> dict[str, Any]:
        from engine.training.batches import describe_batch

        if self.prepared is None:
            self.prepare(arguments)
        assert self.prepared is not None
        return describe_batch(
            self.prepared, self._require_browser().profile, self._require_browser().tokenizer(), arguments["step"]
        )

    def worst(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What `cockpit data worst` says of a run's rows; with `placed`, a list of (file, line), these are listed in
        `drop` instead. Raises ValueError, ProblemError."""
        from engine.prep.verbs import worst

        given = {"drop": None, "only": None, "weight": 0.0, **arguments}
        return worst.run(self.home, argparse.Namespace(**given), lambda *_: None)

    def keep_row(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Append a conversation to a file of rows (see `engine.prep.keep_row`). Raises ValueError, OSError."""
        from engine.prep.keep_row import keep_row

        path = Path(arguments.get("directory") or Path.cwd(), Path(arguments["path"]).expanduser())
        return keep_row(path, arguments["messages"], self.home, arguments.get("run", ""))

    def _require_browser(self) -> Browser:
        if self.browser is None:
            raise ProblemError(
                Problem(code="service.nothing_open", title="No profile is open", hint="choose a profile first")
            )
        return self.browser

    def _progress(self, arguments: dict[str, Any]) -> Callable[..., None]:
        """A function `progress(done, total, **more)` that sends events, and raises Cancelled once the request has been
        cancelled."""
        request, sent = arguments.get("request", ""), 0.0

        def progress(done: int, total: int, **more: Any) -> None:
            nonlocal sent
            if request in self.cancelled:
                raise Cancelled
            if time.monotonic() - sent >= _EVERY:
                sent = time.monotonic()
                self.link.send_event(request, "progress", done=done, total=total, **more)

        return progress


def main() -> None:
    arguments = build_parser().parse_args()
    cancelled: set[str] = set()
    home = Home.locate(arguments.home)
    link = Link(arguments.address, arguments.job, arguments.attempt, home=home, on_cancel=cancelled.add)
    data = Data(link, home, cancelled)
    serve_requests(
        link,
        cancelled,
        {name: getattr(data, name) for name in QUESTIONS},
        ErrorTexts("This cannot be answered", "Reading the data failed"),
    )


if __name__ == "__main__":
    main()
