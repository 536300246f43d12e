"""`cockpit data tokenize`: rows to token ids and labels in a folder that `datasets.load_from_disk` opens."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engine.models import targets
from engine.models.folders import has_tokenizer
from engine.prep import detect_format, readers
from engine.prep.rows import Rejects
from engine.prep.stages import source_files
from engine.prep.stages.context import default_processes
from engine.prep.stages.standalone import Progress, open_rows, output_folder, parse_source
from engine.prep.stages.validate import find_format
from engine.protocol.home import Home, sync
from engine.protocol.messages import Problem, ProblemError
from engine.storage import cache

_REPORT = "report.json"


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, tokens, trained_tokens, seconds, directory}`, the rows rejected, truncated and masked, and `sequences`
    for a joined set.

    `seconds` is the time from rows to tokens on disk, without loading libraries and tokenizer. The folder appears when
    it is complete, with `rejects.jsonl` and `report.json` in it; repeating the command on the same files finds it done.
    `--blocks` also writes flat files (see `token_file`). Raises ValueError, ProblemError.
    """
    if arguments.packing and arguments.blocks:
        raise ValueError("--packing keeps rows whole and --blocks cuts them: choose one")
    if arguments.max_length < 8:
        raise ValueError(f"--max-length {arguments.max_length}: at least 8 tokens")
    out = output_folder(arguments)
    tokenizer_folder = find_tokenizer(arguments.model, home, progress)
    with open_input(home, "tokenize", arguments, tokenizer_folder, progress) as rows:
        report = _read_report(out)
        if report and report["key"] == rows.key:
            return {name: value for name, value in report.items() if name != "key"}
        draft = out.with_name(f".{out.name}.tokenize")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            report = _tokenize(arguments, load_tokenizer(tokenizer_folder), rows, draft, progress) | {
                "directory": str(out)
            }
            (draft / _REPORT).write_text(json.dumps({**report, "key": rows.key}, ensure_ascii=False), encoding="utf-8")
            _publish(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return report


@dataclass(frozen=True)
class TokenizeInput:
    """JSONL files of rows, or of placed rows if there are `files`, with their formats (see `tokenize_rows`)."""

    paths: list[Path]
    files: Sequence[str]
    formats: Sequence[str | None]
    rejects: Path | None
    """The rows that were rejected before tokenisation."""
    read: int
    work: Path
    processes: int
    kind: str
    """Their kind, as a method's `Options.rows` names it."""
    loss_on: str
    key: str
    """A hash of the files, the tokenizer and the settings."""


@contextmanager
def open_input(
    home: Home, verb: str, arguments: argparse.Namespace, tokenizer_folder: Path, progress: Progress
) -> Iterator[TokenizeInput]:
    """The rows of FILE, and a work folder where a killed command with the same files and settings is continued. Raises
    ValueError.

    JSONL files of one format are read in place; others are read and validated first.
    """
    source = parse_source(arguments)
    paths = source_files.list_paths(source, Path.cwd(), home, progress)
    tokenizer = {name: tokenizer_folder / name for name in cache.TOKENIZER_FILES if (tokenizer_folder / name).is_file()}
    settings = {
        "tokenizer": cache.file_digests(tokenizer, lambda _: None),
        **{name: getattr(arguments, name, None) for name in ("max_length", "loss_on", "packing", "blocks")},
    }
    processes = arguments.processes or default_processes()
    formats = {find_format(source, path) for path in paths}
    how = find_kind(formats), choose_loss_on(arguments.loss_on, formats)
    if len(formats) == 1 and all(readers.is_lines(path, source.encoding) for path in paths):
        total = sum(path.stat().st_size for path in paths)
        files = {str(number): path for number, path in enumerate(paths)}
        made_of = {"verb": verb, "files": [str(path) for path in paths], "format": arguments.format, **settings}
        key = cache.entry_key(files, made_of, lambda done: progress("reading", done, total))
        with cache.work_folder(home, key) as work:
            yield TokenizeInput(paths, (), sorted(formats), None, 0, work, processes, *how, key)
        return
    with open_rows(home, verb, arguments, settings, progress) as found:
        context = found.context
        read = found.counts["rejected"]
        yield TokenizeInput(
            [found.rows],
            context.files,
            context.formats,
            found.rejects,
            read,
            context.folder,
            processes,
            *how,
            context.folder.name,
        )


def find_kind(formats: Collection[str | None]) -> str:
    """The kind of rows (a method's `Options.rows`) in files of these formats; mixed files count as conversations."""
    kinds = _kinds(formats)
    return kinds.pop() if kinds in ({"pairs"}, {"judged"}) else "tokens"


def choose_loss_on(loss_on: str, formats: Collection[str | None]) -> str:
    """Resolves `auto`: plain text is trained whole, other rows by the assistant's turns."""
    if loss_on != "auto":
        return loss_on
    return "all" if _kinds(formats) == {"text"} else "assistant"


def _kinds(formats: Collection[str | None]) -> set[str]:
    """The kinds of these formats; None stands for canonical rows."""
    return {detect_format.find_kind(name) if name else "conversations" for name in formats}


def _tokenize(
    arguments: argparse.Namespace, tokenizer: Any, rows: TokenizeInput, draft: Path, progress: Progress
) -> dict[str, Any]:
    import pyarrow  # noqa: F401 - the time of loading it is not that of tokenising

    from engine.prep import token_file, token_store
    from engine.prep.token_rows import UNLIMITED
    from engine.prep.tokenize_files import tokenize_rows

    began = time.perf_counter()
    joined = arguments.packing or arguments.blocks
    if joined and rows.kind != "tokens":
        raise ValueError("preference rows cannot be joined: leave out --packing and --blocks")
    plain = rows.work / "plain" if joined else draft
    with (draft / "rejects.jsonl").open("w", encoding="utf-8") as file:
        if rows.rejects:
            with rows.rejects.open(encoding="utf-8") as earlier:
                shutil.copyfileobj(earlier, file)
        rejects = Rejects(file.write)
        made = tokenize_rows(
            rows.paths,
            plain,
            tokenizer,
            rows.loss_on,
            UNLIMITED if arguments.blocks else arguments.max_length,
            rejects,
            rows.work,
            rows.processes,
            partial(progress, "tokenising"),
            rows.files,
            rows.formats,
            kind=rows.kind,
        )
    counts = made.counts
    if not counts.rows:
        raise ValueError(_explain_empty(arguments, rows, rejects, counts.masked))
    report = {
        "rows": counts.rows,
        "tokens": counts.tokens,
        "trained_tokens": counts.trained_tokens,
        "rejected": rows.read + rejects.count,
        "truncated": counts.truncated,
        "masked": counts.masked,
    }
    if arguments.packing:
        report["sequences"] = token_store.write_packed(plain, draft, arguments.max_length, partial(progress, "packing"))
    if arguments.blocks:
        blocks = token_store.write_blocks(plain, draft, arguments.max_length, partial(progress, "joining"))
        report |= {"sequences": blocks.rows, "trained_tokens": blocks.trained_tokens}
        token_file.write(plain, draft, len(tokenizer))
    return {**report, "seconds": time.perf_counter() - began}


def _explain_empty(arguments: argparse.Namespace, rows: TokenizeInput, rejects: Rejects, masked: int) -> str:
    if masked:
        return (
            f"all {masked} rows are cut at {arguments.max_length} tokens before their reply begins: raise --max-length"
        )
    if rejects.first:
        return f"no row can be tokenised: {'; '.join(rejects.first)}"
    return f"{arguments.file} holds no good row" + (f"; {rows.read} are bad" if rows.read else "")


def _read_report(out: Path) -> dict[str, Any]:
    """The report of an earlier run in `out`, empty without one. Raises ValueError if `out` contains anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    try:
        content: dict[str, Any] = json.loads((out / _REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    if "key" not in content or not (out / "state.json").is_file():
        raise ValueError(f"--out {out} exists and was not made by this command; name a new folder")
    return content


def _publish(draft: Path, out: Path) -> None:
    for path in draft.rglob("*"):
        sync(path)
    sync(draft)
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)
    sync(out.parent)


# ── the model's tokenizer ──────────────────────────────────────────────────────────────────────────────────────────


def find_tokenizer(target: str, home: Home, progress: Progress) -> Path:
    """The folder of a TARGET's tokenizer; a model in the catalogue is pulled. Raises ProblemError."""
    found = targets.resolve(target, home, Path.cwd())
    found = targets.fetch(found, home, lambda _name, done, total: progress("pulling", done, total))
    for folder in filter(None, (found.adapter, None if found.on_hub else Path(found.base))):
        if has_tokenizer(folder):
            return folder
    if found.on_hub:
        raise ProblemError(
            Problem(
                code="model.not_pulled",
                title=f"{found.base} is not on this machine",
                hint=f"cockpit model pull {found.base}",
            )
        )
    raise ProblemError(
        Problem(
            code="tokenizer.missing",
            title=f"{found.base} has no tokenizer",
            cause="there is no tokenizer.json in the folder",
        )
    )


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises ProblemError."""
    from engine.prep.base_model import load_tokenizer

    return load_tokenizer(folder, "auto", folder, trust_remote_code=False)
