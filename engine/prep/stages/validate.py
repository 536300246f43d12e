"""First stage: reads files and validates their rows. Bad rows are recorded with their place and reason."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engine.options.data import SourceOptions
from engine.prep import chunks, column_mapping, readers
from engine.prep import read_rows as rows
from engine.prep.chunks import Span, SpanResult
from engine.prep.files.lines import LONGEST_LINE, describe_too_long
from engine.prep.files.record import BOM
from engine.prep.formats.canonical import Canonical, EmptyRow
from engine.prep.stages import row_files
from engine.prep.stages.context import Context
from engine.prep.stages.row_files import PlacedRow

_FIRST = 3
"""Bad rows quoted in a message."""

_LISTED = 200
"""Unused columns that are counted by name: rows with free keys have any number of columns."""

_DEEPEST = 100
"""Levels of nested lists and objects in a row at most."""


class SourceFile(NamedTuple):
    """A file of a source. `number` is its index in `Context.files`; files with the same `source` share a limit of
    rows."""

    number: int
    source: int
    path: Path
    options: SourceOptions
    format: str


def find_format(options: SourceOptions, path: Path) -> str:
    """The format of a file's rows; `text` for a file without good rows. Raises ValueError."""
    if options.format == "auto" and next((record for record in _records(path, options) if record.value), None) is None:
        return "text"
    return rows.find_format(options, path)


def _records(path: Path, options: SourceOptions) -> Iterator[readers.Record]:
    return readers.read(path, encoding=options.encoding) if path.stat().st_size else iter(())


def validate(files: Iterable[SourceFile], work: str, out: Path, rejects: Path, context: Context) -> dict[str, Any]:
    """Write the good rows of all files to `out`, placed, and the bad ones to `rejects`.

    `work` decides what is written of a good row: `CANONICAL` or `VERBATIM`. Returns `read` = `good` + `rejected`, `out`
    (rows written: a row may expand to several), `empty` (rows rejected because they have no text or no reply),
    `reasons` by class, a description of the `first` few bad rows, and `unused_columns`: the columns that their format
    does not use, with the number of good rows that have them, the most frequent ones first. Raises ValueError, OSError
    for a file that cannot be read at all.
    """
    read = good = written = empty = 0
    reasons: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    first: list[str] = []
    left: dict[int, int | None] = {}
    with chunks.write_together(out, rejects) as (kept, dropped):
        for file in files:
            remaining = left.setdefault(file.source, file.options.max_rows)
            if remaining == 0 or not file.path.stat().st_size:
                continue
            for done in _check_file(file, work, context):
                taken = _take_rows(done, remaining)
                kept.write(taken.rows)
                dropped.write(taken.rejects)
                read, good, written = read + taken.read, good + taken.good, written + taken.written
                empty += taken.empty
                reasons.update(taken.reasons)
                unused.update(taken.unused)
                if taken.rejects and len(first) < _FIRST:
                    entries = map(row_files.decode, taken.rejects.splitlines()[: _FIRST - len(first)])
                    first += [f"{Path(each['file']).name}:{each['line']}: {each['reason']}" for each in entries]
                if remaining is not None:
                    remaining -= taken.good
                    left[file.source] = remaining
                    if remaining == 0:
                        break
    rejected = sum(reasons.values())
    assert read == good + rejected, (read, good, rejected)
    return {
        "read": read,
        "good": good,
        "rejected": rejected,
        "empty": empty,
        "out": written,
        "reasons": dict(sorted(reasons.items())),
        "first": first,
        "unused_columns": dict(unused.most_common(_LISTED)),
    }


def reason_class(reason: str) -> str:
    """A reason without the parts that differ from row to row: numbers, quoted values, and everything after a colon."""
    return re.sub(r"(?<!UTF-)\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", reason.partition(":")[0]))


def _check_file(file: SourceFile, work: str, context: Context) -> Iterator[SpanResult]:
    inner = context.within(f"file-{file.number:06}")
    inner.folder.mkdir(parents=True, exist_ok=True)
    source, plain = file.path, readers.is_lines(file.path, file.options.encoding)
    if not plain:
        source = inner.folder / "rows"
        if not source.is_file():
            _unpack(file, source, partial(context.progress, "reading"))
    settings = {
        "path": str(file.path),
        "number": file.number,
        "placed": not plain,
        "options": file.options.model_dump(),
        "format": file.format,
    }
    return inner.work_through([source], work, settings, "validating")


def _unpack(file: SourceFile, into: Path, progress: Callable[[int, int], object]) -> None:
    """Write the records of a file that is not JSONL, one per line; for an unreadable one, its reason as a JSON
    string."""
    total = file.path.stat().st_size
    with chunks.write_together(into) as (kept,):
        for record in readers.read(file.path, lambda done: progress(done, total), file.options.encoding):
            value: Any = record.reason if record.value is None else record.value
            try:
                raw = row_files.encode(value)
            except (UnicodeEncodeError, TypeError, ValueError, RecursionError, OverflowError) as error:
                raw = row_files.encode(f"cannot be represented in JSON: {type(error).__name__}")
            kept.write(PlacedRow(file.number, record.line, record.offset, raw).to_line())


# ── in the worker processes ────────────────────────────────────────────────────────────────────────────────────────

CANONICAL = "engine.prep.stages.validate:check_canonical"
VERBATIM = "engine.prep.stages.validate:check_verbatim"


def check_canonical(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes rows in canonical form."""
    return _check_span(span, folder, settings, lambda found, _: [row_files.encode(each) for each in found])


def check_verbatim(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes rows byte for byte as they are."""
    return _check_span(span, folder, settings, lambda found, raw: [raw] if found else [])


def _check_span(
    span: Span, folder: Path, settings: dict[str, Any], write: Callable[[list[Canonical], bytes], list[bytes]]
) -> dict[str, Any]:
    """Checks the rows of a span. `write` gets the canonical rows of a row and its bytes, and returns what is kept."""
    source = SourceOptions(**settings["options"])
    convert = column_mapping.make_converter(source, settings["format"])
    reasons: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    read = written = empty = 0
    with (folder / "rows").open("wb") as kept, (folder / "rejects").open("wb") as dropped:
        for row, value, reason in (_read_placed if settings["placed"] else _read_jsonl)(span, settings["number"]):
            read += 1
            code = "row.invalid"
            outcome: list[bytes] = []
            if value is not None:
                try:
                    found = convert(value)
                    outcome = write(found, row.raw)
                    if _is_too_deep(value, row.raw):
                        outcome, reason = [], f"nested deeper than {_DEEPEST} levels"
                    else:
                        unused.update(column_mapping.unused_columns(source, value, found))
                except EmptyRow as error:
                    reason, code = str(error), "row.empty"
                except ValueError as error:
                    reason = str(error)
                except RecursionError:
                    reason = f"nested deeper than {_DEEPEST} levels"
            if reason:
                reasons[reason_class(reason)] += 1
                empty += code == "row.empty"
                dropped.write(row_files.reject_line(settings["path"], row, reason, "validate", code=code))
            for raw in outcome:
                kept.write(row.to_line(raw))
            written += len(outcome)
    good = read - sum(reasons.values())
    counts = {"read": read, "good": good, "empty": empty, "out": written, "reasons": reasons}
    return {**counts, "unused_columns": dict(unused.most_common(5 * _LISTED))}


def _read_jsonl(span: Span, number: int) -> Iterator[tuple[PlacedRow, dict[str, Any] | None, str]]:
    """The decoded rows of a span of a JSONL file, or the reasons why they cannot be decoded. Skips blank lines."""
    for line in chunks.read_lines(span, LONGEST_LINE):
        if line.content is None:
            yield PlacedRow(number, line.number, line.offset, b""), None, describe_too_long()
        elif content := line.content.removeprefix(BOM).strip():
            yield PlacedRow(number, line.number, line.offset, content), *readers.decode(content)


def _read_placed(span: Span, _: int) -> Iterator[tuple[PlacedRow, dict[str, Any] | None, str]]:
    for row in row_files.read_span(span):
        value: Any = row_files.decode(row.raw)
        yield (row, None, value) if isinstance(value, str) else (row, value, "")


def _is_too_deep(value: Any, raw: bytes) -> bool:
    """Whether a row is nested too deeply for later stages, which walk through it. Most rows have too few brackets for
    that."""
    if raw.count(b"[") + raw.count(b"{") <= _DEEPEST:
        return False
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        nested = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level, depth = list(itertools.chain.from_iterable(nested)), depth + 1
    return depth > _DEEPEST


class _SpanRows(NamedTuple):
    rows: bytes
    rejects: bytes
    read: int
    good: int
    written: int
    empty: int
    reasons: dict[str, int]
    unused: dict[str, int]


def _take_rows(done: SpanResult, remaining: int | None) -> _SpanRows:
    """A span's results, or the part of them up to the limit of `remaining` good rows."""
    kept, rejected = (done.folder / "rows").read_bytes(), (done.folder / "rejects").read_bytes()
    counts = done.counts
    if remaining is None or counts["good"] <= remaining:
        names = ("read", "good", "out", "empty", "reasons", "unused_columns")
        return _SpanRows(kept, rejected, *(counts[name] for name in names))
    lines = [(row_files.parse_line(line)[1:3], line) for line in kept.splitlines(keepends=True)]
    places = [place for place, _ in itertools.groupby(lines, key=lambda each: each[0])][:remaining]
    kept_lines = [line for place, line in lines if place <= places[-1]]
    rejected_lines = [line for line in rejected.splitlines(keepends=True) if _place(line) < places[-1]]
    entries = [row_files.decode(line) for line in rejected_lines]
    return _SpanRows(
        b"".join(kept_lines),
        b"".join(rejected_lines),
        remaining + len(rejected_lines),
        remaining,
        len(kept_lines),
        sum(each["code"] == "row.empty" for each in entries),
        Counter(reason_class(each["reason"]) for each in entries),
        _count_again(kept_lines, counts["unused_columns"]),
    )


def _count_again(lines: list[bytes], unused: dict[str, int]) -> Counter[str]:
    """The counts of the unused columns for some of the span's canonical rows."""
    places = itertools.groupby(map(row_files.parse_line, lines), key=lambda row: (row.line, row.offset))
    columns = (next(rows).row().get("columns") or {} for _, rows in places)
    return Counter(name for each in columns for name in each if name in unused and each[name] not in (None, ""))


def _place(reject: bytes) -> tuple[int, int]:
    entry = row_files.decode(reject)
    return entry["line"], entry["offset"]
