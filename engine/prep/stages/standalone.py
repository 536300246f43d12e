"""Runs one stage on a file, a folder or a glob, for the commands of `cockpit data`. Rows keep their source format."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from engine.config.complaints import explain
from engine.config.overrides import parse_value
from engine.options.base import Options
from engine.options.data import SourceOptions
from engine.prep import chunks, outputs
from engine.prep.formats import FORMATS
from engine.prep.sources import find_left_out
from engine.prep.stages import row_files, source_files
from engine.prep.stages.context import Context, default_processes, run_once
from engine.prep.stages.validate import VERBATIM, SourceFile, find_format, validate
from engine.protocol.home import Home
from engine.protocol.text import did_you_mean
from engine.storage import cache

Progress = Callable[[str, int, int], None]
Model = TypeVar("Model", bound=Options)


@dataclass(frozen=True)
class CheckedRows:
    """A command's validated rows. `counts` are those of `validate`, `rejects` lists the invalid rows, `others` are the
    rows of further files."""

    rows: Path
    rejects: Path
    counts: dict[str, Any]
    others: list[Path]
    context: Context
    left_out: dict[str, list[str]]
    """`left_out`: the files of a folder that were not read because they are for validation or test; empty if all
    were."""


def parse_source(arguments: argparse.Namespace) -> SourceOptions:
    """The source that FILE and `--format` name. Raises ValueError for an unknown format."""
    if arguments.format not in ("auto", *FORMATS):
        hint = did_you_mean(arguments.format, FORMATS)
        raise ValueError(f"--format {arguments.format}: there is no such format{hint}; known are {', '.join(FORMATS)}")
    encoding = getattr(arguments, "encoding", None)
    try:
        return SourceOptions(source=arguments.file, format=arguments.format, encoding=encoding)
    except ValidationError:
        raise ValueError(
            f"--encoding {encoding}: there is no such encoding of text; common ones are gb18030, shift_jis and cp1252"
        )


@contextmanager
def open_rows(
    home: Home,
    verb: str,
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
    progress: Progress,
    others: Iterable[str] = (),
) -> Iterator[CheckedRows]:
    """Read and validate the rows of FILE and of the `others`, in a folder where a killed command with the same files
    and settings is continued.

    Raises ValueError for files that are missing or cannot be read, and if `--out` would overwrite a source or a file
    that no verb has written.
    """
    sources = [parse_source(arguments), *(SourceOptions(source=each) for each in others)]
    found = [source_files.list_paths(source, Path.cwd(), home, progress) for source in sources]
    paths = [path for each in found for path in each]
    _check_out(arguments.out, paths)
    if arguments.out is not None:
        names = ("rejects.jsonl", *(_SPLIT if verb == "split" else ("rows.jsonl",)))
        if verb != "tokenize":  # which checks the whole folder
            outputs.check_folder(output_folder(arguments), names, getattr(arguments, "force", False))
    total = sum(path.stat().st_size for path in paths)
    made_of = {
        "verb": verb,
        "files": [str(path) for path in paths],
        "format": arguments.format,
        "encoding": sources[0].encoding,
        **settings,
    }
    files = {str(number): path for number, path in enumerate(paths)}
    name = cache.entry_key(files, made_of, lambda done: progress("reading", done, total))
    with cache.work_folder(home, name) as folder:
        processes = getattr(arguments, "processes", None) or default_processes()
        context = Context(folder, processes, progress, tuple(map(str, paths)))
        formats: list[str] = []
        checked: list[tuple[Path, Path, dict[str, Any]]] = []
        for source, listed in zip(sources, found, strict=True):
            number, index = len(formats), len(checked)
            mine = [
                SourceFile(number + at, index, path, source, find_format(source, path))
                for at, path in enumerate(listed)
            ]
            formats += [file.format for file in mine]
            checked.append(_check_files(mine, index, context))
        (rows, rejects, counts), *rest = checked
        context = replace(context, formats=tuple(formats))
        left_out = describe_left_out(sources[0])
        yield CheckedRows(rows, rejects, counts, [each[0] for each in rest], context, left_out)


def describe_left_out(source: SourceOptions) -> dict[str, list[str]]:
    """`left_out`, for a report: the files of a folder that are not read; empty if all are."""
    left = find_left_out(source.source, Path.cwd())
    return {"left_out": [str(path) for path in left]} if left else {}


def _check_files(files: list[SourceFile], index: int, context: Context) -> tuple[Path, Path, dict[str, Any]]:
    rows, rejects = context.folder / f"{index}.rows", context.folder / f"{index}.rejects"
    counts = run_once(context, f"{index}.validate", lambda inner: validate(files, VERBATIM, rows, rejects, inner))
    return rows, rejects, counts


def publish(out: Path, rows: Mapping[str, Path], rejects: Iterable[Path], report: dict[str, Any]) -> dict[str, Any]:
    """Write the placed `rows` (file name -> file) without their places, `rejects.jsonl` and, last, `report.json` into
    the folder `out`. Returns the report."""
    out.mkdir(parents=True, exist_ok=True)
    report = {**report, "directory": str(out)}
    written = sorted({*outputs.written_files(out), *rows, "rejects.jsonl"} - {outputs.REPORT})
    with chunks.write_together(*(out / name for name in rows), out / "rejects.jsonl", out / "report.json") as files:
        *kept, dropped, report_file = files
        for path, file in zip(rows.values(), kept, strict=True):
            file.writelines(row.raw + b"\n" for row in row_files.read_file(path))
        for path in rejects:
            if path.is_file():
                with path.open("rb") as part:
                    shutil.copyfileobj(part, dropped, 2**20)
        content = json.dumps({**report, "files": written}, ensure_ascii=False, indent=2)
        report_file.write(content.encode() + b"\n")
    return report


def output_folder(arguments: argparse.Namespace) -> Path:
    """The absolute path of `--out`."""
    return Path(arguments.out).expanduser().absolute()


def parse_options(
    model: type[Model], section: str, overrides: Iterable[str], as_text: Collection[str] = (), **given: Any
) -> Model:
    """The options with the overrides of `--set data.SECTION.KEY=VALUE` or `SECTION.KEY=VALUE`, where KEY may be nested.

    The value is YAML, or plain text below the keys `as_text`. Raises ValueError with all problems.
    """
    document: dict[str, Any] = dict(given)
    wrong = []
    for override in overrides:
        name, equals, text = override.partition("=")
        found, *keys = name.strip().removeprefix("data.").split(".")
        if not equals or found != section or not keys or not all(keys):
            wrong.append(f"--set {override}: write it as {section}.KEY=VALUE")
            continue
        node = document
        for key in keys[:-1]:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        try:
            node[keys[-1]] = text if keys[0] in as_text else parse_value(text)
        except ValueError as error:
            wrong.append(f"--set {override}: {error}")
    try:
        options = model.model_validate(document)
    except ValidationError as error:
        wrong += [f"{section}.{'.'.join(map(str, keys))}: {message}" for keys, _, message in explain(error, model)]
    if wrong:
        raise ValueError("; ".join(wrong))
    return options


def _check_out(out: str | None, sources: list[Path]) -> None:
    if out is None:
        return
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    taken = {path.resolve() for path in folder.glob("*") if path.suffix in (".jsonl", ".json")}
    for source in sources:
        if source.resolve() in taken and source.name in ("rows.jsonl", "rejects.jsonl", *_SPLIT, "report.json"):
            raise ValueError(f"--out {out} holds {source.name}, which the rows are read from; name another folder")


_SPLIT = ("train.jsonl", "validation.jsonl", "test.jsonl")
