"""`cockpit data convert`: writes the rows of a file, a folder or a glob in another format.

A row is converted without loss or not at all: rows that the other format cannot represent are listed in
`OUT.rejects.jsonl`.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.options.data import SourceOptions
from engine.prep import chunks, detect_format, outputs, read_rows, readers
from engine.prep.chunks import Span
from engine.prep.files import lines
from engine.prep.files.record import BOM
from engine.prep.formats import FORMATS
from engine.prep.readers import Record
from engine.prep.stages.context import default_processes
from engine.prep.stages.standalone import describe_left_out, parse_source
from engine.protocol.home import Home
from engine.protocol.text import did_you_mean

_WORK = "engine.prep.verbs.convert:convert_span"


def run(home: Home, arguments: argparse.Namespace, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """`{rows, converted, rejected, file, rejects[, left_out]}`: rows read, rows written (a row may expand), rows that
    could not be converted.

    Raises ValueError for an unknown format, and for a result that would overwrite its source or a file that is not of
    this verb.
    """
    _check_format(arguments.to, FORMATS)
    _check_format(arguments.format, ("auto", *FORMATS))
    source = parse_source(arguments)
    out = Path(arguments.out).expanduser().absolute()
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {arguments.out}: rows are written as JSONL; give it a name that ends in .jsonl")
    paths = read_rows.locate(source, Path.cwd(), home)
    if out.resolve() in {path.resolve() for path in paths}:
        raise ValueError(f"--out {arguments.out} is what the rows are read from; name another file")
    rejects = out.with_name(f"{out.stem}.rejects.jsonl")
    outputs.check_files(home, (out, rejects), getattr(arguments, "force", False))
    settings = {
        "source": source.model_dump(),
        "to": arguments.to,
        "formats": {str(path): read_rows.find_format(source, path) for path in paths if path.stat().st_size},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = _work_folder(out, settings, paths)
    results = chunks.work_through(
        [span for path in paths for span in _spans(path, source.encoding)],
        _WORK,
        settings,
        folder,
        default_processes(),
        lambda done, total: progress("converting", done, total),
    )
    with outputs.writing(home, out, rejects):
        counts = chunks.gather(results, {"rows": out, "rejects": rejects})
    shutil.rmtree(folder)
    totals: dict[str, Any] = {name: sum(each[name] for each in counts) for name in ("rows", "converted", "rejected")}
    if not totals["rejected"]:
        rejects.unlink()
    totals |= describe_left_out(source)
    return totals | {"file": str(out), "rejects": str(rejects) if totals["rejected"] else None}


def convert_span(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The work on a span (see `chunks.Work`): writes converted rows to `rows`, the others to `rejects`."""
    row_format, to = settings["formats"][span.path], settings["to"]
    convert, revert = (
        read_rows.make_converter(SourceOptions(**settings["source"]), row_format),
        detect_format.load(to).revert,
    )
    counts = {"rows": 0, "converted": 0, "rejected": 0}
    with (folder / "rows").open("wb") as kept, (folder / "rejects").open("wb") as dropped:
        for record in _records(span, settings["source"]["encoding"]):
            counts["rows"] += 1
            try:
                if record.value is None:
                    raise ValueError(record.reason)
                canonical = convert(record.value)
                # A row that has the format already is not changed: a format may write the same in several ways.
                found = [record.value] if row_format == to else [revert(each) for each in canonical]
                content = b"".join(msgspec.json.encode(row) + b"\n" for row in found)
            except (ValueError, OverflowError) as error:
                counts["rejected"] += 1
                reject = {"file": record.file, "line": record.line, "offset": record.offset, "reason": str(error)}
                dropped.write(msgspec.json.encode(reject) + b"\n")
                continue
            kept.write(content)
            counts["converted"] += len(found)
    return counts


def _spans(path: Path, encoding: str | None) -> Iterator[Span]:
    """Spans of a JSONL file; other files cannot be cut and are one span."""
    size = path.stat().st_size
    if size and readers.is_lines(path, encoding):
        yield from chunks.cut(path)
    elif size:
        yield Span(str(path), 0, size, 1)


def _records(span: Span, encoding: str | None) -> Iterator[Record]:
    if not readers.is_lines(Path(span.path), encoding):
        yield from readers.read(Path(span.path), encoding=encoding)
        return
    for number, offset, content in chunks.read_lines(span, lines.LONGEST_LINE):
        if content is None:
            yield Record(span.path, number, offset, offset, None, lines.describe_too_long())
        elif content := content.removeprefix(BOM).strip():
            yield Record(span.path, number, offset, offset + len(content), *readers.decode(content))


def _work_folder(out: Path, settings: dict[str, Any], paths: list[Path]) -> Path:
    """The folder beside the result for the finished spans of this work. Removes folders of other, abandoned work for
    the same result."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps([settings, stats], sort_keys=True).encode()).hexdigest()[:16]
    folder = out.with_name(f".{out.name}.{key}")
    for other in out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 16}"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def _check_format(name: str, known: Collection[str]) -> None:
    if name not in known:
        hint = did_you_mean(name, FORMATS)
        raise ValueError(f"there is no format {name!r}{hint}; known are {', '.join(known)}")
