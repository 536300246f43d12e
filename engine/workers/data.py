"""The data service: what a profile would train on, row by row and token by token.

Questions: `open {profile, directory}`, `rows {part, start, count}`, `narrow {part, query}`, `tokens {part, index}`, `rendered {part, index}`,
`stats {part}`, `stages {until}`, `prepare {}`, `batch {step}`, `decide {at, decision}`, `reread {}`. `open`, `narrow`, `stats`, `stages`, `prepare` and `reread` say `progress {phase, done, total}` on the way and can
be cancelled; what `prepare` has done by then is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config.profile import ProfileError, parse
from engine.prep import partial, search
from engine.prep.browse import Browser
from engine.prep.prepare import prepare
from engine.prep.stages import pretokenized
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.worker_link import Link
from engine.workers.questions import Cancelled, Wording, attend, parser

QUESTIONS = ("open", "rows", "narrow", "tokens", "rendered", "stats", "prepare", "batch", "decide", "reread", "stages")
_EVERY = 0.1
"""Seconds between two words of progress."""


class Data:
    """The browser that is open, or none."""

    def __init__(self, link: Link, home: Home, cancelled: set[str]) -> None:
        self.link, self.home, self.cancelled = link, home, cancelled
        self.browser: Browser | None = None
        self.prepared: dict[str, Any] | None = None

    def open(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Read a profile's sources once. Raises ProblemError."""
        directory = Path(asked.get("directory") or Path.cwd())
        self.browser = self.prepared = None
        try:
            profile = parse(asked["profile"], "profile", directory, home=self.home)
        except ProfileError as error:
            raise ProblemError(
                Problem(title="The profile does not hold", cause=str(error), hint="mend it on the Profile screen")
            )
        self.browser = Browser(profile, self.home, self._progress(asked))
        return self.browser.summary()

    def rows(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._opened().rows(asked.get("part", "train"), asked["start"], asked["count"])

    def tokens(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._opened().tokens(asked.get("part", "train"), asked["index"])

    def narrow(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a query that cannot be read."""
        browser, part = self._opened(), asked.get("part", "train")
        return {"total": browser.narrow(part, search.parse(asked["query"]), self._progress(asked))}

    def rendered(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._opened().render(asked.get("part", "train"), asked["index"])

    def stats(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._opened().stats(asked.get("part", "train"), self._progress(asked))

    def stages(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The stages up to and with the one named `until`, those done before taken from the cache; from then on the rows that leave it are
        shown, by an empty name those of the sources. Returns the counts of the `stages`, the rows of the `parts`, the `decisions`, and of
        `tokenize` also what `prepare` answers. Raises ValueError, ProblemError."""
        browser, told, name = self._opened(), self._progress(asked), asked["until"]
        if not name:
            return {"stages": [], "parts": browser.show(None, told), "decisions": browser.decisions()}
        if name == partial.TOKENIZE and pretokenized.find_folders(browser.profile.data, browser.profile.directory):
            return {**self.prepare(asked), "parts": browser.totals(), "decisions": {}}
        left = partial.run_until(
            browser.profile, name, self.home, lambda phase, done, total: told(done, total, phase=phase)
        )
        if left.expansion:
            browser.add_review(left.expansion, left.forms)
        parts = browser.show(left.rows, told)
        done = self.prepare(asked) if name == partial.TOKENIZE else {"stages": left.rows.stages}
        return {**done, "parts": parts, "decisions": browser.decisions()}

    def prepare(self, asked: dict[str, Any]) -> dict[str, Any]:
        """All stages, as a run would do them first; quick when they are done already. Raises ProblemError."""
        told = self._progress(asked)
        self.prepared = prepare(
            self._opened().profile, self.home, lambda phase, done, total: told(done, total, phase=phase)
        )
        if self.prepared["vocabulary"]:
            self._opened().use_tokenizer(Path(self.prepared["tokenizer"]))
        return {key: value for key, value in self.prepared.items() if key != "lock"}

    def decide(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Accept or drop an expanded row. The sources are read again by `reread`. Raises ValueError."""
        self.prepared = None
        return self._opened().decide(asked["at"], asked["decision"])

    def reread(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._opened().reread(self._progress(asked))

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        from engine.training.batches import batch

        if self.prepared is None:
            self.prepare(asked)
        assert self.prepared is not None
        return batch(self.prepared, self._opened().profile, self._opened().tokenizer(), asked["step"])

    def _opened(self) -> Browser:
        if self.browser is None:
            raise ProblemError(Problem(title="No profile is open", hint="choose a profile first"))
        return self.browser

    def _progress(self, asked: dict[str, Any]) -> Callable[..., None]:
        """Tells `progress(done, total, **more)`. Raises Cancelled once the question is."""
        request, told = asked.get("request", ""), 0.0

        def progress(done: int, total: int, **more: Any) -> None:
            nonlocal told
            if request in self.cancelled:
                raise Cancelled
            if time.monotonic() - told >= _EVERY:
                told = time.monotonic()
                self.link.say(request, "progress", done=done, total=total, **more)

        return progress


def main() -> None:
    arguments = parser().parse_args()
    cancelled: set[str] = set()
    link = Link(arguments.address, arguments.job, arguments.attempt, on_cancel=cancelled.add)
    data = Data(link, Home.locate(arguments.home), cancelled)
    attend(
        link,
        cancelled,
        {name: getattr(data, name) for name in QUESTIONS},
        Wording("This cannot be answered", "Reading the data failed"),
    )


if __name__ == "__main__":
    main()
