"""Looking into a profile's data without loading it: an index of places, rows read when asked for."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.options.data import SourceOptions
from engine.prep import partial as partly
from engine.prep import stage_output
from engine.prep.base_model import load_tokenizer, locate_base
from engine.prep.chat_labels import Refusal, Renderer
from engine.prep.expand import decisions
from engine.prep.expand.review import Review
from engine.prep.formats.canonical import Canonical, conversation_of, kind_of
from engine.prep.row_index import IndexedFile, Indexer
from engine.prep.rows import Rejects, Row
from engine.prep.search import EXPANDED, Query, select
from engine.prep.stage_output import StagedFile
from engine.prep.stages import source_files
from engine.prep.stages.pipeline import StageRows
from engine.prep.stages.source_files import PARTS
from engine.prep.stats import histogram
from engine.prep.templates import unwrap_tokenizer
from engine.prep.token_pieces import reply_parts
from engine.prep.token_rows import MASKED, UNLIMITED, BatchTokenizer, Counts
from engine.prep.tokenize import encode, label, make_row_tokenizer, tokenize
from engine.prep.tokenize_replies import REPLIES
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError

_BARS = 12
_TOLD = 100
"""Bad rows told with the summary."""
REJECTED = "rejected"
"""What a part is called that holds the bad rows of all sources."""

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


class Browser:
    """The rows of a profile's sources, and the bad ones. Weights and `data.max_rows` change what is trained, not what is shown.

    After `show`, the rows that left a stage stand in place of those of the sources. A part can be narrowed to the rows that fit a query; rows are then numbered among these. Where a source is what an expansion made,
    there is a part of all its rows, and decisions about them are taken.
    """

    def __init__(self, profile: Profile, home: Home, progress: Progress) -> None:
        """Reads every row once, to find its place and whether it holds. Raises ProblemError."""
        self.profile, self._home = profile, home
        self._indexer = Indexer(home)
        self.problems, self.columns = self._indexer.problems, self._indexer.columns
        self._views: dict[str, array[int]] = {}
        self._tokenizer: Any = None
        self._located = [
            (part, source, self._files(part, index, source))
            for part in PARTS
            for index, source in enumerate(self._sources(part))
        ]
        total = sum(path.stat().st_size for _, _, paths in self._located for path in paths)
        self.parts: dict[str, list[list[IndexedFile]]] = {part: [] for part in PARTS}
        done = 0
        for part, source, paths in self._located:
            self.parts[part].append(self._index(source, paths, partial(_report, progress, done, total)))
            done += sum(path.stat().st_size for path in paths)
        self.left: dict[str, StagedFile] | None = None
        """What left a stage, when that is shown."""
        self.reviews = self._reviews()
        """The expansions among the sources."""

    def summary(self) -> dict[str, Any]:
        """What `open` answers."""
        return {
            "sources": [
                {
                    "source": files[0].options.source,
                    "format": ", ".join(sorted({indexed.format for indexed in files})),
                    "rows": sum(len(indexed.lines) for indexed in files),
                    "rejected": sum(indexed.rejected for indexed in files),
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
            "problems": [problem.told() for problem in self.problems[:_TOLD]],
            "stages": partly.list_stages(self.profile),
            "template": self.profile.data.template,
            "base": self.profile.model.origin,
        }

    def rows(self, part: str, start: int, count: int) -> dict[str, Any]:
        """Rows `start` … `start + count` (exclusive) of a part, or of what it is narrowed to, each canonical and as it stands in its file."""
        total = self.shown(part)
        wanted = range(max(0, start), min(total, start + count))
        return {"rows": [self._told(part, index) for index in wanted], "total": total}

    def narrow(self, part: str, query: Query, progress: Progress) -> int:
        """Show only the rows of a part that fit; an empty query shows all. Returns how many there are. Raises ValueError."""
        self._views.pop(part, None)
        if not query.empty:
            self._views[part] = select(self, part, query, progress)
        return self.shown(part)

    def totals(self) -> dict[str, int]:
        """Rows of each part; there is one of expanded rows where there is an expansion."""
        return {part: self.total(part) for part in (*PARTS, *([EXPANDED] if self.reviews else ()), REJECTED)}

    def review(self, folder: Path, forms: list[SourceOptions]) -> None:
        """Have the rows of another expansion among the expanded ones: those that the profile itself had made. Raises ProblemError."""
        others = [review for review in self.reviews if review.folder != folder]
        self.reviews = [*others, _review(folder, forms)]
        self._views.pop(EXPANDED, None)

    def show(self, left: StageRows | None, progress: Progress) -> dict[str, int]:
        """The rows, and the rejected ones, as they leave the stages; by None as the sources have them. Returns rows by part."""
        if left is None:
            self.left, self.problems = None, self._indexer.problems
        else:
            total = sum(path.stat().st_size for path in left.parts.values())
            self.left = stage_output.open_parts(left, lambda done: progress(done, total))
            self.problems = stage_output.read_bad_rows(left)
        self._views = {part: view for part, view in self._views.items() if part == EXPANDED}
        return self.totals()

    def total(self, part: str) -> int:
        """Rows of a part."""
        return len(self.problems) if part == REJECTED else sum(map(len, self._each(part)))

    def shown(self, part: str) -> int:
        """Rows of a part that the present query leaves."""
        return len(self._views[part]) if part in self._views else self.total(part)

    def scan(self, part: str) -> Iterator[tuple[str, bytes, Callable[[], Canonical]]]:
        """Every row of a part: its source and file in lower case, as it stands, and what gives its canonical form."""
        if part == REJECTED:
            for problem in self.problems:
                told = f"{problem.reason} {problem.raw()}".encode()
                yield str(problem.path).lower(), told, lambda: {"text": ""}
            return
        for indexed in self._each(part):
            for at, raw in enumerate(indexed.raws()):
                yield indexed.place(at), raw, partial(_content, indexed, at, raw)

    # ── decisions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def decisions(self) -> dict[str, int]:
        """Rows of all expansions by what was decided about them; empty without an expansion."""
        counts: Counter[str] = Counter()
        for review in self.reviews:
            counts.update(review.counts())
        return dict(counts)

    def decision(self, at: int) -> str:
        """What was decided about row `at` of all expanded ones."""
        review, number = self._review(at)
        return review.decision(number)

    def decide(self, at: int, decision: str) -> dict[str, Any]:
        """Accept or drop row `at` of all expanded ones, or leave it undecided. Returns what was decided `before`, the `decisions` now, and
        as `index` where the row is shown; None where the query leaves it out. Raises ValueError."""
        review, number = self._review(at)
        before = review.decision(number)
        review.decide(number, decision)
        view = self._views.get(EXPANDED)
        index: int | None = at
        if view is not None:
            place = bisect_left(view, at)
            index = place if place < len(view) and view[place] == at else None
        return {"before": before, "decisions": self.decisions(), "index": index}

    def reread(self, progress: Progress) -> dict[str, Any]:
        """Read the sources again that decisions have changed, and show them. Returns the summary. Raises ProblemError."""
        self.show(None, progress)
        folders = {review.folder for review in self.reviews}
        places: Counter[str] = Counter()
        for part, source, paths in self._located:
            if any(path.parent in folders for path in paths):
                total = sum(path.stat().st_size for path in paths)
                self._indexer.forget(paths)
                self.parts[part][places[part]] = self._index(source, paths, partial(_report, progress, 0, total))
                self._views.pop(part, None)
                self._views.pop(REJECTED, None)
            places[part] += 1
        return self.summary()

    # ── one row ────────────────────────────────────────────────────────────────────────────────────────────────────

    def length(self, content: Canonical) -> int:
        """Tokens of a row, uncut, of a pair those of its longer sequence; 0 for one that the template refuses."""
        if kind_of(content) != "tokens":
            counts = Counts()
            make_row_tokenizer(kind_of(content), self.tokenizer(), self._loss_on, UNLIMITED)([content], counts)
            return max(counts.lengths, default=0)
        tokenizer = self.tokenizer()
        rendered = Renderer(tokenizer, self._loss_on).render([content])[0]
        return 0 if isinstance(rendered, Refusal) else len(next(encode([rendered], unwrap_tokenizer(tokenizer))).ids)

    def rendered(self, part: str, index: int) -> dict[str, Any]:
        """A row's text as training has it, beside what chat would send to get its last reply: the same tokens, or an error of the template."""
        tokenizer = self.tokenizer()
        source, at = self._find(part, index)
        content = source.row(at).content
        if kind_of(content) != "tokens":  # the better reply, or the judged one
            content = {**content, "messages": conversation_of(content)}
            content = {name: content[name] for name in ("messages", "tools") if name in content}
        found = Renderer(tokenizer, self._loss_on).render([content])[0]
        if isinstance(found, Refusal):
            raise ValueError(found.reason)
        if "messages" not in content or not found.ends:
            return {"training": found.text, "chat": "", "same": True}
        last = max(number for number, turn in enumerate(content["messages"]) if turn["role"] == "assistant")
        asked = tokenizer.apply_chat_template(
            content["messages"][:last], tools=content.get("tools"), add_generation_prompt=True, tokenize=False
        )
        return {"training": found.text, "chat": asked, "same": found.text.startswith(asked)}

    def tokens(self, part: str, index: int) -> dict[str, Any]:
        """A row as the model will see it. The pieces' texts joined are the rendered row, up to where it is cut.

        Of preference rows `parts` has the prompt with each reply, and `pieces` all of them.
        """
        tokenizer = self.tokenizer()
        source, at = self._find(part, index)
        row = source.row(at)
        if self.profile.method.rows in REPLIES:  # type: ignore[attr-defined]
            return self._reply_tokens(row)
        rendered = Renderer(tokenizer, self._loss_on).render([row.content])[0]
        if isinstance(rendered, Refusal):
            raise ValueError(rendered.reason)
        encoding = next(encode([rendered], unwrap_tokenizer(tokenizer)))
        pieces, covered = [], 0
        for token, trained, (_, end) in zip(encoding.ids, label(rendered, encoding), encoding.offsets, strict=True):
            # Tokens that are parts of one character all claim it: the first shows it. Skipped blanks go to the next token.
            pieces.append({"text": rendered.text[covered:end], "id": token, "trained": trained != MASKED})
            covered = max(covered, end)
        kept = pieces[: self.profile.data.max_length]
        return {
            "pieces": kept,
            "tokens": len(kept),
            "trained": sum(piece["trained"] for piece in kept),
            "cut": len(pieces) - len(kept),
        }

    def _reply_tokens(self, row: Row) -> dict[str, Any]:
        """As `tokens`. Raises ValueError for a row that would be left out."""
        kept, whole, rejects = Counts(), Counts(), Rejects(lambda _: None)
        length = self.profile.data.max_length
        found = [columns for _, columns in tokenize([row], self._tokenizing(length), rejects, kept)]
        if not found:
            raise ValueError(rejects.first[0] if rejects.first else f"cut at {length} tokens, before a reply begins")
        self._tokenizing(UNLIMITED)([row.content], whole)
        parts = reply_parts(self.tokenizer(), found[0])
        return {
            "pieces": [piece for part in parts for piece in part["pieces"]],
            "parts": parts,
            "tokens": kept.tokens,
            "trained": kept.trained_tokens,
            "cut": whole.tokens - kept.tokens,
        }

    def stats(self, part: str, progress: Progress) -> dict[str, Any]:
        """Counts over the whole part, tokenised as a run would; `histogram` has [length in tokens, rows] from the shortest on."""
        counts, total = Counts(), self.total(part)

        def told() -> Iterator[Row]:
            for index, row in enumerate(self._all(part)):
                progress(index, total)
                yield row

        for _ in tokenize(told(), self._tokenizing(self.profile.data.max_length), Rejects(lambda _: None), counts):
            pass
        bars = histogram(counts.lengths, _BARS)
        return {**counts.summary(), "histogram": [list(bar) for bar in zip(bars["edges"], bars["rows"], strict=False)]}

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _tokenizing(self, max_length: int) -> BatchTokenizer:
        """As a run with this method would."""
        method: Any = self.profile.method
        if method.rows == "prompts":
            max_length -= method.max_new_tokens
        return make_row_tokenizer(
            method.rows, self.tokenizer(), self._loss_on, max_length, getattr(method, "max_prompt", None)
        )

    @property
    def _loss_on(self) -> str:
        return str(getattr(self.profile.method, "loss_on", "assistant"))

    def _sources(self, part: str) -> list[SourceOptions]:
        """As the catalogue, if there is one, completes them. Raises ProblemError."""
        data = self.profile.data
        try:
            return [source_files.resolve_source(source, data, self.profile.directory) for source in getattr(data, part)]
        except (ValueError, OSError) as error:
            raise ProblemError(Problem(title=f"data.{part} cannot be used", cause=str(error)))

    def _files(self, part: str, index: int, source: SourceOptions) -> list[Path]:
        try:
            return source_files.list_paths(source, self.profile.directory, self._home, lambda *_: None)
        except ValueError as error:
            raise ProblemError(Problem(title=f"data.{part}.{index}.source cannot be used", cause=str(error)))

    def _index(self, source: SourceOptions, paths: list[Path], progress: Callable[[int], object]) -> list[IndexedFile]:
        """The files of a source, as far as its limit of rows goes. `progress` is told bytes."""
        files: list[IndexedFile] = []
        left, done = source.max_rows, 0
        for path in paths:
            indexed, good = self._indexer.index(source, path, left, partial(_further, progress, done))
            files.append(indexed)
            done += path.stat().st_size
            left = None if left is None else left - good
            if left == 0:
                break
        return files

    def _reviews(self) -> list[Review]:
        """Raises ProblemError."""
        found: dict[Path, Review] = {}
        for _, source, paths in self._located:
            for path in paths:
                folder = path.parent
                if path.name == decisions.ROWS and folder not in found and decisions.is_expansion(folder):
                    found[folder] = _review(folder, [source])
        return list(found.values())

    def _review(self, at: int) -> tuple[Review, int]:
        """The expansion and the number in it of row `at` of all expanded ones."""
        number = at
        for review in self.reviews:
            if 0 <= number < len(review):
                return review, number
            number -= len(review)
        raise ValueError(f"there is no expanded row {at}")

    def _each(self, part: str) -> Iterator[IndexedFile | StagedFile]:
        if part == EXPANDED:
            return (review.indexed for review in self.reviews)
        if self.left is not None:
            if part not in PARTS:
                raise KeyError(part)
            return iter([self.left[part]] if part in self.left else [])
        return itertools.chain.from_iterable(self.parts[part])

    def _find(self, part: str, index: int) -> tuple[IndexedFile | StagedFile, int]:
        """The file and the place in it of a row, numbered as it is shown."""
        if 0 <= index < self.shown(part):
            at = self._views[part][index] if part in self._views else index
            for indexed in self._each(part):
                if at < len(indexed):
                    return indexed, at
                at -= len(indexed)
        raise ValueError(f"there is no row {index} among the {self.shown(part)} of {part}")

    def _all(self, part: str) -> Iterator[Row]:
        return itertools.chain.from_iterable(
            (indexed.row(at) for at in range(len(indexed))) for indexed in self._each(part)
        )

    def _told(self, part: str, index: int) -> dict[str, Any]:
        if part == REJECTED:
            problem = self.problems[self._views[part][index] if part in self._views else index]
            return {"index": index, "text": problem.raw(), "raw": problem.raw(), **problem.told()}
        source, at = self._find(part, index)
        row = source.row(at)
        raw = source.raw(at).decode("utf-8", "replace")
        told = {"index": index, **row.content, "raw": raw, "file": row.file, "line": row.line}
        if part == EXPANDED:
            made = self._views[part][index] if part in self._views else index
            review, number = self._review(made)
            told |= {"at": made, "decision": review.decision(number), "origin": review.origin(number)}
        return told

    def tokenizer(self) -> Any:
        """The profile's. Raises ProblemError, also for one that is yet to be trained on its rows."""
        if self._tokenizer is None:
            _, folder = locate_base(self.profile, self._home, lambda *_: None)
            self.take_tokenizer(folder)
        return self._tokenizer

    def take_tokenizer(self, folder: Path) -> None:
        """Go on with this one: preparing has trained it."""
        self._tokenizer = load_tokenizer(
            folder, self.profile.data.template, self.profile.directory, self.profile.model.trust_remote_code
        )


def _review(folder: Path, forms: list[SourceOptions]) -> Review:
    try:
        return Review(folder, forms)
    except (ValueError, KeyError, OSError) as error:
        raise ProblemError(Problem(title=f"the expansion in {folder} cannot be read", cause=str(error)))


def _further(progress: Callable[[int], object], before: int, done: int) -> None:
    progress(before + done)


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _content(indexed: IndexedFile | StagedFile, at: int, raw: bytes) -> Canonical:
    return indexed.row(at, raw).content
