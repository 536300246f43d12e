"""Looking into a profile's data without loading it: an index of places, rows read when asked for."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from engine.prep import mapping, readers, rows
from engine.prep.chat import Refused, Renderer
from engine.prep.files.copies import copy, origins, rejects
from engine.prep.files.record import Record
from engine.prep.formats.canonical import Canonical
from engine.prep.mapping import Converter
from engine.prep.options import SourceOptions
from engine.prep.prepare import load_tokenizer, locate_base
from engine.prep.rows import Rejects, Row
from engine.prep.stages import located
from engine.prep.stages.located import PARTS
from engine.prep.stages.pipeline import ASKED
from engine.prep.stats import histogram
from engine.prep.tokenize import MASKED, Counts, bare, encode, label, tokenize
from engine.prep.views import Query, select
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.profile import Profile

_PROBLEMS = 10_000
"""Bad rows that can be looked at; all are counted."""
_BARS = 12
_TOLD = 100
"""Bad rows told with the summary."""
REJECTED = "rejected"
"""What a part is called that holds the bad rows of all sources."""
_COLUMNS = 50
"""Columns told by name."""

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


@dataclass
class Indexed:
    """A file of a source: where its good rows lie. Lines, offsets and ends are parallel: 24 bytes a row.

    A row that expands into several stands there as often. Offsets and ends are of `stored`: the file itself if it is a .jsonl, else
    a copy of its rows; lines are always the file's own.
    """

    options: SourceOptions
    path: Path
    stored: Path
    shape: str
    convert: Converter
    lines: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))
    rejected: int = 0

    def raw(self, index: int) -> bytes:
        with self.stored.open("rb") as file:
            file.seek(self.offsets[index])
            return file.read(self.ends[index] - self.offsets[index]).strip().removeprefix(b"\xef\xbb\xbf")

    def raws(self) -> Iterator[bytes]:
        """All rows as they stand, the file opened once."""
        with self.stored.open("rb") as file:
            for offset, end in zip(self.offsets, self.ends, strict=True):
                file.seek(offset)
                yield file.read(end - offset)

    def row(self, index: int, raw: bytes | None = None) -> Row:
        """Raises ValueError when the file has changed since it was indexed."""
        value, reason = readers.decode(self.raw(index) if raw is None else raw.strip().removeprefix(b"\xef\xbb\xbf"))
        try:
            if value is None:
                raise ValueError(reason)
            contents = self.convert(value)
            first = index
            while first and self.offsets[first - 1] == self.offsets[index]:
                first -= 1
            if index - first >= len(contents):
                raise ValueError(f"it expands into {len(contents)} rows now")
        except ValueError as error:
            raise ValueError(f"{self.path.name}:{self.lines[index]} has changed since it was opened: {error}")
        offset = self.offsets[index] if self.stored == self.path else 0
        return Row(str(self.path), self.lines[index], offset, contents[index - first])


@dataclass
class Problematic:
    """A bad row's place in its file, and in the JSON lines where it can be read again."""

    path: Path
    stored: Path
    line: int
    offset: int
    end: int
    reason: str

    def told(self) -> dict[str, Any]:
        return {"file": str(self.path), "line": self.line, "reason": self.reason}

    def raw(self) -> str:
        """At most its first 64 KiB; nothing for a row that only its file's own format can show."""
        if self.stored != self.path:
            return ""
        with self.stored.open("rb") as file:
            file.seek(self.offset)
            return file.read(min(self.end - self.offset, 2**16)).decode("utf-8", "replace").rstrip("\n")


class Browser:
    """The rows of a profile's sources, and the bad ones. Weights and `data.max_rows` change what is trained, not what is shown.

    A part can be narrowed to the rows that fit a query; rows are then numbered among these.
    """

    def __init__(self, profile: Profile, home: Home, progress: Progress) -> None:
        """Reads every row once, to find its place and whether it holds. Raises ProblemError."""
        self.profile, self._home = profile, home
        self.problems: list[Problematic] = []
        self.columns: list[str] = []
        self._views: dict[str, array[int]] = {}
        self._tokenizer: Any = None
        found = [
            (part, source, self._files(part, index, source))
            for part in PARTS
            for index, source in enumerate(self._sources(part))
        ]
        total = sum(path.stat().st_size for _, _, paths in found for path in paths)
        self.parts: dict[str, list[list[Indexed]]] = {part: [] for part in PARTS}
        done = 0
        for part, source, paths in found:
            files: list[Indexed] = []
            left = source.max_rows
            for path in paths:
                indexed, good = self._index(source, path, left, partial(_report, progress, done, total))
                files.append(indexed)
                done += path.stat().st_size
                left = None if left is None else left - good
                if left == 0:
                    break
            self.parts[part].append(files)

    def summary(self) -> dict[str, Any]:
        """What `open` answers."""
        return {
            "sources": [
                {
                    "source": files[0].options.source,
                    "format": ", ".join(sorted({indexed.shape for indexed in files})),
                    "rows": sum(len(indexed.lines) for indexed in files),
                    "rejected": sum(indexed.rejected for indexed in files),
                    "part": part,
                    "files": len(files),
                }
                for part, sources in self.parts.items()
                for files in sources
            ],
            "rows": sum(self.total(part) for part in self.parts),
            "parts": {part: self.total(part) for part in (*PARTS, REJECTED)},
            "columns": self.columns,
            "problems": [problem.told() for problem in self.problems[:_TOLD]],
            "stages": [name for name in ASKED if getattr(self.profile.data, name)],
            "template": self.profile.data.template,
            "base": self.profile.model.base,
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

    def total(self, part: str) -> int:
        """Rows of a part."""
        if part == REJECTED:
            return len(self.problems)
        return sum(len(indexed.lines) for indexed in self._each(part))

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
            place = f"{indexed.options.source} {indexed.path}".lower()
            for at, raw in enumerate(indexed.raws()):
                yield place, raw, partial(_content, indexed, at, raw)

    def length(self, content: Canonical) -> int:
        """Tokens of a row, uncut; 0 for one that the template refuses."""
        tokenizer = self.tokenizer()
        rendered = Renderer(tokenizer, self._loss_on).render([content])[0]
        return 0 if isinstance(rendered, Refused) else len(next(encode([rendered], bare(tokenizer))).ids)

    def rendered(self, part: str, index: int) -> dict[str, Any]:
        """A row's text as training has it, beside what chat would send to get its last reply: the same tokens, or an error of the template."""
        tokenizer = self.tokenizer()
        source, at = self._find(part, index)
        content = source.row(at).content
        found = Renderer(tokenizer, self._loss_on).render([content])[0]
        if isinstance(found, Refused):
            raise ValueError(found.reason)
        if "messages" not in content or not found.ends:
            return {"training": found.text, "chat": "", "same": True}
        last = max(number for number, turn in enumerate(content["messages"]) if turn["role"] == "assistant")
        asked = tokenizer.apply_chat_template(
            content["messages"][:last], tools=content.get("tools"), add_generation_prompt=True, tokenize=False
        )
        return {"training": found.text, "chat": asked, "same": found.text.startswith(asked)}

    def tokens(self, part: str, index: int) -> dict[str, Any]:
        """A row as the model will see it. The pieces' texts joined are the rendered row, up to where it is cut."""
        tokenizer = self.tokenizer()
        source, at = self._find(part, index)
        rendered = Renderer(tokenizer, self._loss_on).render([source.row(at).content])[0]
        if isinstance(rendered, Refused):
            raise ValueError(rendered.reason)
        encoding = next(encode([rendered], bare(tokenizer)))
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

    def stats(self, part: str, progress: Progress) -> dict[str, Any]:
        """Counts over the whole part, tokenised as a run would; `histogram` has [length in tokens, rows] from the shortest on."""
        counts, total = Counts(), self.total(part)

        def told() -> Iterator[Row]:
            for index, row in enumerate(self._all(part)):
                progress(index, total)
                yield row

        tokens = tokenize(
            told(), self.tokenizer(), self._loss_on, self.profile.data.max_length, Rejects(lambda _: None), counts
        )
        for _ in tokens:
            pass
        bars = histogram(counts.lengths, _BARS)
        return {**counts.summary(), "histogram": [list(bar) for bar in zip(bars["edges"], bars["rows"], strict=False)]}

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _loss_on(self) -> str:
        return str(self.profile.method.loss_on)  # type: ignore[attr-defined]

    def _sources(self, part: str) -> list[SourceOptions]:
        """As the catalogue, if there is one, completes them. Raises ProblemError."""
        data = self.profile.data
        try:
            return [located.resolved(source, data, self.profile.directory) for source in getattr(data, part)]
        except (ValueError, OSError) as error:
            raise ProblemError(Problem(title=f"data.{part} cannot be used", cause=str(error)))

    def _files(self, part: str, index: int, source: SourceOptions) -> list[Path]:
        try:
            return located.paths(source, self.profile.directory, self._home, lambda *_: None)
        except ValueError as error:
            raise ProblemError(Problem(title=f"data.{part}.{index}.source cannot be used", cause=str(error)))

    def _index(
        self, source: SourceOptions, path: Path, limit: int | None, progress: Callable[[int], object]
    ) -> tuple[Indexed, int]:
        """The file's places, up to `limit` good rows, and how many there were before any expanded."""
        good = 0
        try:
            stored, records = self._records(path, progress)
            shape = rows.shape_of(source, stored) if stored.stat().st_size else source.format
            convert = mapping.converter(source, shape) if shape != "auto" else _no_rows
            indexed = Indexed(source, path, stored, shape, convert)
            for record in records:
                contents = self._contents(indexed, record)
                for _ in contents:
                    indexed.lines.append(record.line)
                    indexed.offsets.append(record.offset)
                    indexed.ends.append(record.end)
                good += bool(contents)
                if good == limit:
                    break
        except (ValueError, OSError) as error:
            raise ProblemError(Problem(title=f"{source.source} cannot be read", cause=str(error)))
        return indexed, good

    def _records(self, path: Path, progress: Callable[[int], object]) -> tuple[Path, Iterator[Record]]:
        """The JSON lines that hold a file's rows, and its records: line numbers the file's own, offsets those of the JSON lines."""
        if path.suffix.lower() == ".jsonl":
            return path, readers.read(path, progress)
        copied = copy(path, self._home, progress)
        placed = (
            record._replace(line=line) for record, line in zip(readers.read(copied.rows), origins(copied), strict=True)
        )
        return copied.rows, itertools.chain(rejects(copied, path), placed)

    def _contents(self, indexed: Indexed, record: Record) -> list[Canonical]:
        """The canonical rows of a record; none when it is bad, which is then counted."""
        reason = record.reason
        if record.value is not None:
            self.columns += [column for column in record.value if column not in self.columns][
                : _COLUMNS - len(self.columns)
            ]
            try:
                return indexed.convert(record.value)
            except ValueError as error:
                reason = str(error)
        indexed.rejected += 1
        if len(self.problems) < _PROBLEMS:
            place = (record.line, record.offset, record.end)
            self.problems.append(Problematic(indexed.path, indexed.stored, *place, reason))
        return []

    def _each(self, part: str) -> Iterator[Indexed]:
        return itertools.chain.from_iterable(self.parts[part])

    def _find(self, part: str, index: int) -> tuple[Indexed, int]:
        """The file and the place in it of a row, numbered as it is shown."""
        if 0 <= index < self.shown(part):
            at = self._views[part][index] if part in self._views else index
            for indexed in self._each(part):
                if at < len(indexed.lines):
                    return indexed, at
                at -= len(indexed.lines)
        raise ValueError(f"there is no row {index} among the {self.shown(part)} of {part}")

    def _all(self, part: str) -> Iterator[Row]:
        return itertools.chain.from_iterable(
            (indexed.row(at) for at in range(len(indexed.lines))) for indexed in self._each(part)
        )

    def _told(self, part: str, index: int) -> dict[str, Any]:
        if part == REJECTED:
            problem = self.problems[self._views[part][index] if part in self._views else index]
            return {"index": index, "text": problem.raw(), "raw": problem.raw(), **problem.told()}
        source, at = self._find(part, index)
        row = source.row(at)
        raw = source.raw(at).decode("utf-8", "replace")
        return {"index": index, **row.content, "raw": raw, "file": row.file, "line": row.line}

    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            _, folder = locate_base(self.profile, self._home, lambda *_: None)
            self._tokenizer = load_tokenizer(
                folder, self.profile.data.template, self.profile.directory, self.profile.model.trust_remote_code
            )
        return self._tokenizer


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _content(indexed: Indexed, at: int, raw: bytes) -> Canonical:
    return indexed.row(at, raw).content


def _no_rows(row: dict[str, Any]) -> list[Canonical]:
    raise ValueError("it held no rows")
