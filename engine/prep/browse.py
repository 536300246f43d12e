"""Browsing a profile's data without loading it: an index of where the rows lie, and rows read on demand."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engine.config.profile import Profile
from engine.options.data import SourceOptions
from engine.prep import partial as partial_runs
from engine.prep import stage_output
from engine.prep.expand import decisions
from engine.prep.expand.review import Review
from engine.prep.formats.canonical import Canonical
from engine.prep.row_index import IndexedFile, Indexer
from engine.prep.row_views import RowViews
from engine.prep.rows import Row
from engine.prep.search import EXPANDED, Query, select
from engine.prep.sources import find_left_out
from engine.prep.stage_output import StagedFile
from engine.prep.stages import source_files
from engine.prep.stages.pipeline import StageRows
from engine.prep.stages.source_files import PARTS
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

_LISTED = 100
"""Bad rows listed in the summary."""
REJECTED = "rejected"
"""The part that holds the bad rows of all sources."""

_DROPPED = 10_000
"""Rows that tokenising leaves out, of each part, that are kept for display."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class DroppedRow(NamedTuple):
    """A good row, by its number in its part, of which tokenising leaves nothing to train on."""

    part: str
    at: int
    reason: str


class Browser:
    """The rows of a profile's sources, and the bad ones. Weights and `data.max_rows` change what is trained, not what
    is shown.

    After `show`, the rows that left a stage take the place of the sources' rows. A part can be narrowed to the rows
    that match a query; rows are then numbered among these. If a source is the result of an expansion, there is a part
    with all its rows, and the user can accept or drop them.
    """

    def __init__(self, profile: Profile, home: Home, progress: Progress) -> None:
        """Reads every row once, to find its place and whether it is valid. Raises ProblemError."""
        self.profile, self._home = profile, home
        self._indexer = Indexer(home)
        self.problems, self.columns = self._indexer.problems, self._indexer.columns
        self._matches: dict[str, array[int]] = {}
        self._dropped: list[DroppedRow] = []
        """The rows that tokenising leaves out, of the parts whose tokens were counted."""
        self._row_views = RowViews(profile, home)
        self._source_files = [
            (part, source, self._list_files(part, index, source))
            for part in PARTS
            for index, source in enumerate(self._resolve_sources(part))
        ]
        total = sum(path.stat().st_size for _, _, paths in self._source_files for path in paths)
        self.parts: dict[str, list[list[IndexedFile]]] = {part: [] for part in PARTS}
        done = 0
        for part, source, paths in self._source_files:
            self.parts[part].append(self._index(source, paths, partial(_report, progress, done, total)))
            done += sum(path.stat().st_size for path in paths)
        self.staged: dict[str, StagedFile] | None = None
        """The rows that left a stage, while these are shown."""
        self.reviews = self._open_reviews()
        """The expansions among the sources."""

    def summary(self) -> dict[str, Any]:
        """The answer to the question `open`."""
        return {
            "sources": [
                {
                    "source": files[0].options.source,
                    "format": ", ".join(sorted({indexed.format for indexed in files})),
                    "rows": sum(len(indexed.lines) for indexed in files),
                    "rejected": sum(indexed.rejected for indexed in files),
                    "unused_columns": dict(sum((indexed.unused for indexed in files), Counter()).most_common()),
                    "left_out": self._count_left_out(files[0].options, part),
                    "part": part,
                    "files": len(files),
                }
                for part, sources in self.parts.items()
                for files in sources
            ],
            "rows": sum(self.total(part) for part in self.parts),
            "parts": self.totals(),
            "decisions": self.decisions(),
            "columns": self.columns,
            "problems": [problem.to_json() for problem in self.problems[:_LISTED]],
            "stages": partial_runs.list_stages(self.profile),
            "template": self.profile.data.template,
            "base": self.profile.model.origin,
        }

    def rows(self, part: str, start: int, count: int) -> dict[str, Any]:
        """Rows `start` to `start + count` (exclusive) of a part, or of its matches, each in canonical form and as it
        stands in its file."""
        total = self.visible(part)
        indices = range(max(0, start), min(total, start + count))
        return {"rows": [self._describe(part, index) for index in indices], "total": total}

    def narrow(self, part: str, query: Query, progress: Progress) -> int:
        """Show only the rows of a part that match; an empty query shows all. Returns how many there are. Raises
        ValueError."""
        self._matches.pop(part, None)
        if not query.empty:
            self._matches[part] = select(self, part, query, progress)
        return self.visible(part)

    def totals(self) -> dict[str, int]:
        """Rows of each part; there is a part for expanded rows if there is an expansion."""
        return {part: self.total(part) for part in (*PARTS, *([EXPANDED] if self.reviews else ()), REJECTED)}

    def add_review(self, folder: Path, forms: list[SourceOptions]) -> None:
        """Add the expansion that the profile itself has made to the expanded rows. Raises ProblemError."""
        others = [review for review in self.reviews if review.folder != folder]
        self.reviews = [*others, _open_review(folder, forms)]
        self._matches.pop(EXPANDED, None)

    def show(self, staged: StageRows | None, progress: Progress) -> dict[str, int]:
        """Show the rows and the rejected ones as they leave the stages; with None, as the sources have them. Returns
        rows by part."""
        if staged is None:
            self.staged, self.problems = None, self._indexer.problems
        else:
            total = sum(path.stat().st_size for path in staged.parts.values())
            self.staged = stage_output.open_parts(staged, lambda done: progress(done, total))
            self.problems = stage_output.read_bad_rows(staged)
        self._matches = {part: matches for part, matches in self._matches.items() if part == EXPANDED}
        self._dropped = []
        return self.totals()

    def total(self, part: str) -> int:
        """Rows of a part."""
        return len(self.problems) + len(self._dropped) if part == REJECTED else sum(map(len, self._files(part)))

    def visible(self, part: str) -> int:
        """Rows of a part that match its current query."""
        return len(self._matches[part]) if part in self._matches else self.total(part)

    def scan(self, part: str) -> Iterator[tuple[str, bytes, Callable[[], Canonical]]]:
        """Every row of a part: its source and file in lower case, its bytes, and a function that returns its canonical
        form."""
        if part == REJECTED:
            for problem in self.problems:
                text = f"{problem.reason} {problem.raw()}".encode()
                yield str(problem.path).lower(), text, lambda: {"text": ""}
            for dropped in self._dropped:
                indexed, at = self._locate(dropped.part, dropped.at)
                raw = indexed.raw(at)
                yield indexed.place(at), dropped.reason.encode() + raw, partial(_content, indexed, at, raw)
            return
        for indexed in self._files(part):
            for at, raw in enumerate(indexed.raws()):
                yield indexed.place(at), raw, partial(_content, indexed, at, raw)

    # ── decisions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def decisions(self) -> dict[str, int]:
        """Rows of all expansions by decision; empty without an expansion."""
        counts: Counter[str] = Counter()
        for review in self.reviews:
            counts.update(review.counts())
        return dict(counts)

    def decision(self, at: int) -> str:
        """The decision about row `at` of all expanded rows."""
        review, number = self._find_review(at)
        return review.decision(number)

    def decide(self, at: int, decision: str) -> dict[str, Any]:
        """Accept or drop row `at` of all expanded rows, or make it undecided again.

        Returns the decision `before`, the counts of all `decisions` now, and the `index` at which the row is shown,
        None if the query hides it. Raises ValueError.
        """
        review, number = self._find_review(at)
        before = review.decision(number)
        review.decide(number, decision)
        matches = self._matches.get(EXPANDED)
        index: int | None = at
        if matches is not None:
            place = bisect_left(matches, at)
            index = place if place < len(matches) and matches[place] == at else None
        return {"before": before, "decisions": self.decisions(), "index": index}

    def reread(self, progress: Progress) -> dict[str, Any]:
        """Index the sources again that decisions have changed, and show them. Returns the summary. Raises
        ProblemError."""
        self.show(None, progress)
        folders = {review.folder for review in self.reviews}
        places: Counter[str] = Counter()
        for part, source, paths in self._source_files:
            if any(path.parent in folders for path in paths):
                total = sum(path.stat().st_size for path in paths)
                self._indexer.forget(paths)
                self.parts[part][places[part]] = self._index(source, paths, partial(_report, progress, 0, total))
                self._matches.pop(part, None)
                self._matches.pop(REJECTED, None)
            places[part] += 1
        return self.summary()

    # ── as training sees it (see RowViews) ─────────────────────────────────────────────────────────────────────────

    def tokenizer(self) -> Any:
        return self._row_views.tokenizer()

    def use_tokenizer(self, folder: Path) -> None:
        self._row_views.use_tokenizer(folder)

    def length(self, content: Canonical) -> int:
        return self._row_views.count_tokens(content)

    def render(self, part: str, index: int) -> dict[str, Any]:
        return self._row_views.render(self._row(part, index).content)

    def tokens(self, part: str, index: int) -> dict[str, Any]:
        return self._row_views.tokens(self._row(part, index))

    def stats(self, part: str, progress: Progress) -> dict[str, Any]:
        """Counts over the whole part. `progress` gets (rows done, rows in all). The rows that tokenising leaves out are
        listed with the bad ones from then on."""
        total = self.total(part)
        left: list[DroppedRow] = []

        def rows() -> Iterator[Row]:
            files = ((indexed.row(at) for at in range(len(indexed))) for indexed in self._files(part))
            for index, row in enumerate(itertools.chain.from_iterable(files)):
                progress(index, total)
                yield row

        def drop(at: int, reason: str) -> None:
            if len(left) < _DROPPED:
                left.append(DroppedRow(part, at, reason))

        found = self._row_views.measure(rows(), drop)
        if part in PARTS:
            self._dropped = [each for each in self._dropped if each.part != part] + left
            self._matches.pop(REJECTED, None)
        return {**found, "rejected": self.total(REJECTED), "dropped": [self._place(each) for each in left[:_LISTED]]}

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _resolve_sources(self, part: str) -> list[SourceOptions]:
        """The part's sources, completed from the catalogue if there is one. Raises ProblemError."""
        data = self.profile.data
        try:
            return [
                source_files.resolve_source(source, data, self.profile.directory, part)
                for source in getattr(data, part)
            ]
        except (ValueError, OSError) as error:
            raise ProblemError(
                Problem(code="data.source.unusable", title=f"data.{part} cannot be used", cause=str(error))
            )

    def _list_files(self, part: str, index: int, source: SourceOptions) -> list[Path]:
        try:
            return source_files.list_paths(source, self.profile.directory, self._home, lambda *_: None, part)
        except ValueError as error:
            raise ProblemError(
                Problem(
                    code="data.source.unusable", title=f"data.{part}.{index}.source cannot be used", cause=str(error)
                )
            )

    def _count_left_out(self, source: SourceOptions, part: str) -> int:
        """The files of a folder that are not read, because they are for another part."""
        try:
            return len(find_left_out(source.source, self.profile.directory, part))
        except (ValueError, OSError):
            return 0  # it was removed meanwhile

    def _index(self, source: SourceOptions, paths: list[Path], progress: Callable[[int], object]) -> list[IndexedFile]:
        """The files of a source, up to its limit of rows. `progress` gets the bytes done."""
        files: list[IndexedFile] = []
        left, done = source.max_rows, 0
        for path in paths:
            indexed, good = self._indexer.index(source, path, left, partial(_add_before, progress, done))
            files.append(indexed)
            done += path.stat().st_size
            left = None if left is None else left - good
            if left == 0:
                break
        return files

    def _open_reviews(self) -> list[Review]:
        """Raises ProblemError."""
        found: dict[Path, Review] = {}
        for _, source, paths in self._source_files:
            for path in paths:
                folder = path.parent
                if path.name == decisions.ROWS and folder not in found and decisions.is_expansion(folder):
                    found[folder] = _open_review(folder, [source])
        return list(found.values())

    def _find_review(self, at: int) -> tuple[Review, int]:
        """The expansion that holds row `at` of all expanded rows, and the row's number in it."""
        number = at
        for review in self.reviews:
            if 0 <= number < len(review):
                return review, number
            number -= len(review)
        raise ValueError(f"there is no expanded row {at}")

    def _files(self, part: str) -> Iterator[IndexedFile | StagedFile]:
        if part == EXPANDED:
            return (review.indexed for review in self.reviews)
        if self.staged is not None:
            if part not in PARTS:
                raise KeyError(part)
            return iter([self.staged[part]] if part in self.staged else [])
        return itertools.chain.from_iterable(self.parts[part])

    def _find(self, part: str, index: int) -> tuple[IndexedFile | StagedFile, int]:
        """The file that holds a row, numbered as it is shown, and the row's place in that file."""
        if 0 <= index < self.visible(part):
            return self._locate(part, self._matches[part][index] if part in self._matches else index)
        raise ValueError(f"there is no row {index} among the {self.visible(part)} of {part}")

    def _locate(self, part: str, at: int) -> tuple[IndexedFile | StagedFile, int]:
        """The file that holds row `at` of all rows of a part, and the row's place in that file. Raises ValueError."""
        left = at
        for indexed in self._files(part):
            if left < len(indexed):
                return indexed, left
            left -= len(indexed)
        raise ValueError(f"there is no row {at} in {part}")

    def _place(self, dropped: DroppedRow) -> dict[str, Any]:
        source, at = self._locate(dropped.part, dropped.at)
        row = source.row(at)
        return {"file": row.file, "line": row.line, "reason": f"tokenize: {dropped.reason}"}

    def _row(self, part: str, index: int) -> Row:
        source, at = self._find(part, index)
        return source.row(at)

    def _describe(self, part: str, index: int) -> dict[str, Any]:
        if part == REJECTED:
            at = self._matches[part][index] if part in self._matches else index
            if at >= len(self.problems):
                dropped = self._dropped[at - len(self.problems)]
                source, place = self._locate(dropped.part, dropped.at)
                raw = source.raw(place).decode("utf-8", "replace")
                return {"index": index, **source.row(place).content, "raw": raw, **self._place(dropped)}
            problem = self.problems[at]
            return {"index": index, "text": problem.raw(), "raw": problem.raw(), **problem.to_json()}
        source, at = self._find(part, index)
        row = source.row(at)
        raw = source.raw(at).decode("utf-8", "replace")
        described = {"index": index, **row.content, "raw": raw, "file": row.file, "line": row.line}
        if part == EXPANDED:
            at = self._matches[part][index] if part in self._matches else index
            review, number = self._find_review(at)
            described |= {"at": at, "decision": review.decision(number), "origin": review.origin(number)}
        return described


def _open_review(folder: Path, forms: list[SourceOptions]) -> Review:
    try:
        return Review(folder, forms)
    except (ValueError, KeyError, OSError) as error:
        raise ProblemError(
            Problem(code="file.unreadable", title=f"the expansion in {folder} cannot be read", cause=str(error))
        )


def _add_before(progress: Callable[[int], object], before: int, done: int) -> None:
    progress(before + done)


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _content(indexed: IndexedFile | StagedFile, at: int, raw: bytes) -> Canonical:
    return indexed.row(at, raw).content
