"""Looking into a profile's data without loading it: an index of places, rows read when asked for."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from engine.prep import readers, rows, shapes
from engine.prep.chat import Refused, Renderer
from engine.prep.formats.canonical import Canonical
from engine.prep.options import SourceOptions
from engine.prep.prepare import load_tokenizer, locate_base
from engine.prep.rows import Rejects, Row
from engine.prep.tokenize import MASKED, Counts, bare, encode, label, tokenize
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.profile import Profile

_PROBLEMS = 100
"""Bad rows told by name; all are counted."""

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


@dataclass
class Indexed:
    """One source: where its good rows lie. Lines, offsets and ends are parallel: 24 bytes a row."""

    options: SourceOptions
    path: Path
    shape: str
    lines: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))
    rejected: int = 0

    def raw(self, index: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return file.read(self.ends[index] - self.offsets[index]).strip().removeprefix(b"\xef\xbb\xbf")

    def row(self, index: int) -> Row:
        """Raises ValueError when the file has changed since it was indexed."""
        value, reason = readers.decode(self.raw(index))
        if value is None:
            raise ValueError(f"{self.path.name}:{self.lines[index]} has changed since it was opened: {reason}")
        content: Canonical = shapes.load(self.shape).convert(value)
        return Row(str(self.path), self.lines[index], self.offsets[index], content)


class Browser:
    """The train and validation rows of a profile. Weights and `data.max_rows` change what is trained, not what is shown."""

    def __init__(self, profile: Profile, home: Home, progress: Progress) -> None:
        """Reads every row once, to find its place and whether it holds. Raises ProblemError."""
        self.profile, self._home = profile, home
        self.problems: list[dict[str, Any]] = []
        self.columns: list[str] = []
        self._tokenizer: Any = None
        found = [
            (part, source, self._path(part, index, source))
            for part in ("train", "validation")
            for index, source in enumerate(getattr(profile.data, part))
        ]
        total = sum(path.stat().st_size for _, _, path in found)
        self.parts: dict[str, list[Indexed]] = {"train": [], "validation": []}
        done = 0
        for part, source, path in found:
            self.parts[part].append(self._index(source, path, partial(_report, progress, done, total)))
            done += path.stat().st_size

    def summary(self) -> dict[str, Any]:
        """What `open` answers."""
        return {
            "sources": [
                {
                    "source": indexed.options.source,
                    "format": indexed.shape,
                    "rows": len(indexed.lines),
                    "rejected": indexed.rejected,
                    "part": part,
                }
                for part, sources in self.parts.items()
                for indexed in sources
            ],
            "rows": sum(len(indexed.lines) for sources in self.parts.values() for indexed in sources),
            "columns": self.columns,
            "problems": self.problems,
            "template": self.profile.data.template,
            "base": self.profile.model.base,
        }

    def rows(self, part: str, start: int, count: int) -> dict[str, Any]:
        """Rows `start` … `start + count` (exclusive) of a part, each canonical and as it stands in its file."""
        total = self._total(part)
        wanted = range(max(0, start), min(total, start + count))
        return {"rows": [self._shown(part, index) for index in wanted], "total": total}

    def tokens(self, part: str, index: int) -> dict[str, Any]:
        """A row as the model will see it. The pieces' texts joined are the rendered row, up to where it is cut."""
        tokenizer = self._load_tokenizer()
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

    def stats(self, part: str, progress: Progress) -> dict[str, int]:
        """Counts over the whole part, tokenised as a run would."""
        counts, total = Counts(), self._total(part)

        def told() -> Iterator[Row]:
            for index, row in enumerate(self._all(part)):
                progress(index, total)
                yield row

        tokens = tokenize(
            told(), self._load_tokenizer(), self._loss_on, self.profile.data.max_length, Rejects(lambda _: None), counts
        )
        for _ in tokens:
            pass
        return counts.summary()

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _loss_on(self) -> str:
        return str(self.profile.method.loss_on)  # type: ignore[attr-defined]

    def _path(self, part: str, index: int, source: SourceOptions) -> Path:
        try:
            return rows.locate(source, self.profile.directory)
        except ValueError as error:
            raise ProblemError(Problem(title=f"data.{part}.{index}.source cannot be used", cause=str(error)))

    def _index(self, source: SourceOptions, path: Path, progress: Callable[[int], object]) -> Indexed:
        try:
            indexed = Indexed(source, path, rows.shape_of(source, path) if path.stat().st_size else source.format)
            for record in readers.read(path):
                progress(record.end)
                reason = record.reason
                if record.value is not None:
                    self.columns += [column for column in record.value if column not in self.columns][
                        : 50 - len(self.columns)
                    ]
                    try:
                        shapes.load(indexed.shape).convert(record.value)
                    except ValueError as error:
                        reason = str(error)
                if reason:
                    indexed.rejected += 1
                    if len(self.problems) < _PROBLEMS:
                        self.problems.append({"file": str(path), "line": record.line, "reason": reason})
                    continue
                for column, value in (
                    (indexed.lines, record.line),
                    (indexed.offsets, record.offset),
                    (indexed.ends, record.end),
                ):
                    column.append(value)
                if len(indexed.lines) == source.max_rows:
                    break
        except (ValueError, OSError) as error:
            raise ProblemError(Problem(title=f"{source.source} cannot be read", cause=str(error)))
        return indexed

    def _total(self, part: str) -> int:
        return sum(len(indexed.lines) for indexed in self.parts[part])

    def _find(self, part: str, index: int) -> tuple[Indexed, int]:
        at = index
        for indexed in self.parts[part]:
            if 0 <= at < len(indexed.lines):
                return indexed, at
            at -= len(indexed.lines)
        raise ValueError(f"there is no row {index} among the {self._total(part)} of {part}")

    def _all(self, part: str) -> Iterator[Row]:
        return itertools.chain.from_iterable(
            (indexed.row(at) for at in range(len(indexed.lines))) for indexed in self.parts[part]
        )

    def _shown(self, part: str, index: int) -> dict[str, Any]:
        source, at = self._find(part, index)
        return {"index": index, **source.row(at).content, "raw": source.raw(at).decode("utf-8", "replace")}

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            _, folder = locate_base(self.profile, self._home, lambda *_: None)
            self._tokenizer = load_tokenizer(
                folder, self.profile.data.template, self.profile.directory, self.profile.model.trust_remote_code
            )
        return self._tokenizer


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)
