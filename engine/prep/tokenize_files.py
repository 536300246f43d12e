"""Tokenising the rows of files: many processes, resumable after a kill, and a result that is mapped into memory."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from engine.prep import detect_format, row_places, token_store
from engine.prep.chunks import SIZE, Span, SpanResult, cut, read_lines, work_through
from engine.prep.files.lines import LONGEST_LINE, describe_too_long
from engine.prep.formats.canonical import conversation_of
from engine.prep.readers import decode
from engine.prep.rows import Rejects, Row
from engine.prep.templates import ChatTokenizer
from engine.prep.token_rows import BATCH, COLUMNS, BatchTokenizer, Counts
from engine.prep.tokenize import make_row_tokenizer
from engine.protocol.messages import Problem, ProblemError

PLACED_LINE = 2**31
"""Bytes of a placed line at most. We write these lines: each is as long as its row, whose length a reader has
checked."""
ROWS, PLACES = "rows.jsonl", "places.bin"
"""What tokenising can keep of rows besides their tokens."""
SPANS = "placed-tokens"
"""The folder of finished spans. Spans in `tokens`, of a killed preparation of an older version, have no places."""
_GOLDEN = 3
"""Conversations that a template lock keeps."""


class TokenizeResult(NamedTuple):
    """The result of `tokenize_rows`. `golden` are the messages of the first few conversations."""

    counts: Counts
    golden: list[list[dict[str, Any]]]


def tokenize_rows(
    rows: Sequence[Path],
    into: Path,
    tokenizer: Any,
    loss_on: str,
    max_length: int,
    rejects: Rejects,
    work_folder: Path,
    processes: int,
    progress: Callable[[int, int], object],
    files: Sequence[str] = (),
    formats: Sequence[str | None] = (),
    kept: Mapping[str, Path] = MappingProxyType({}),
    kind: str = "tokens",
    max_prompt: int | None = None,
    task: str | None = None,
    turns: str = "auto",
    thinking: str = "keep",
) -> TokenizeResult:
    """Tokenise the rows of JSONL files into the Arrow set `into` (see `token_store`).

    Without `files`, each line is a row. With `files`, each line is `[file, line, offset, row]`, as between two stages,
    where `file` is an index into `files`. Rows are canonical unless `formats` gives the format of each of `files`, or
    one format for all lines. Bad rows go to `rejects`. `kind` and the parameters behind it are those of
    `make_row_tokenizer`. `kept` are files to write, too: the kept canonical rows (`ROWS`) and their `PLACES`.
    `work_folder` keeps finished spans across kills; remove it when the result is safe. `progress` gets (bytes done,
    bytes in all).

    Raises ProblemError for a conversation if the tokenizer has no template, ValueError for a tokenizer that is pure
    Python.
    """
    settings = {
        "tokenizer": str(ChatTokenizer.of(tokenizer).save(work_folder)),
        "loss_on": loss_on,
        "max_length": max_length,
        "kind": kind,
        "max_prompt": max_prompt,
        "task": task,
        "turns": turns,
        "thinking": thinking,
        "files": list(files),
        "formats": list(formats),
        "kept": sorted(kept),
    }
    total = sum(path.stat().st_size for path in rows)
    # The size, and so the result, does not depend on the number of processes. Small input is not worth many.
    spans = [span for path in rows for span in cut(path, min(SIZE, max(SIZE // 8, total // 16)))]
    processes = min(processes, 1 + total // (2 * SIZE))
    made, work = TokenizeResult(Counts(), []), f"{__name__}:tokenize_span"
    with token_store.link_streams(into, COLUMNS[kind]) as link, ExitStack() as stack:
        written = {name: stack.enter_context(path.open("wb")) for name, path in kept.items()}
        for done in work_through(spans, work, settings, work_folder / SPANS, processes, progress):
            _check_template(done.counts["untemplated"])
            made.counts.add(Counts.from_json(done.counts["counts"]))
            made.golden.extend(done.counts["golden"][: _GOLDEN - len(made.golden)])
            link(done.folder / "tokens.arrow")
            _add_rejects(rejects, done)
            for name, file in written.items():
                file.write((done.folder / name).read_bytes())
    return made


def _add_rejects(rejects: Rejects, done: SpanResult) -> None:
    rejects.read += done.counts["read"]
    for line in (done.folder / "rejects.jsonl").read_bytes().splitlines():
        rejects.add(**json.loads(line))


def _check_template(place: str) -> None:
    if place:
        raise ProblemError(
            Problem(
                code="template.none",
                title="The base has no chat template",
                cause=f"{place} is a conversation, and nothing says how this model writes one",
                hint="name a Jinja file in data.template, or take an instruction-tuned base",
            )
        )


def tokenize_span(span: Span, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The work on a span (see `chunks.Work`): writes `tokens.arrow`, `rejects.jsonl` and, if requested, `rows.jsonl`
    and `places.bin`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is one process per core already
    tokenizing = _load_row_tokenizer(
        *(settings[name] for name in ("kind", "tokenizer", "loss_on", "max_length", "max_prompt", "task")),
        *(settings[name] for name in ("turns", "thinking")),
    )
    counts, summary = Counts(), {"read": 0, "untemplated": ""}
    numbers = {path: number for number, path in enumerate(settings["files"])}
    golden: list[list[dict[str, Any]]] = []
    with (
        (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects_file,
        (folder / ROWS).open("wb") as rows_file,
        (folder / PLACES).open("wb") as places_file,
        token_store.arrow_writer(folder / "tokens.arrow", COLUMNS[settings["kind"]]) as write,
    ):
        rejects = Rejects(rejects_file.write)
        rows = read_span(span, settings["files"], settings["formats"], rejects)
        while some := list(itertools.islice(rows, BATCH)):
            spoken = next((row for row in some if conversation_of(row.content)), None)
            if spoken and not tokenizing.template:
                summary["untemplated"] = f"{Path(spoken.file).name}:{spoken.line}"
                break
            batch = tokenizing([row.content for row in some], counts)
            for at, (reason, bad) in batch.dropped(len(some), settings["max_length"]).items():
                file, number, offset, _ = some[at]
                if bad:
                    rejects.add(file, number, offset, reason)
                else:  # it is named, and does not count as a bad row
                    entry = {"file": file, "line": number, "offset": offset, "reason": reason, "bad": False}
                    rejects_file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            write(batch.columns)
            if PLACES in settings["kept"]:
                placed = (some[at] for at in batch.rows)
                places_file.write(row_places.encode([(numbers[row.file], row.line) for row in placed]))
            for at in dict.fromkeys(batch.rows):
                content = some[at].content
                if len(golden) < _GOLDEN and (talk := conversation_of(content)) and talk not in golden:
                    golden.append(talk)
                if ROWS in settings["kept"]:
                    rows_file.write(msgspec.json.encode(content) + b"\n")
        summary["read"] = rejects.read
    return {"counts": counts.to_json(), "golden": golden, **summary}


@functools.lru_cache(maxsize=2)
def _load_row_tokenizer(
    kind: str,
    tokenizer: str,
    loss_on: str,
    max_length: int,
    max_prompt: int | None,
    task: str | None,
    turns: str,
    thinking: str,
) -> BatchTokenizer:
    """Cached from span to span; the folder's name is a hash of its content."""
    chat = ChatTokenizer.load(Path(tokenizer))
    return make_row_tokenizer(kind, chat, loss_on, max_length, max_prompt, task, turns, thinking)


def read_span(span: Span, files: Sequence[str], formats: Sequence[str | None], rejects: Rejects) -> Iterator[Row]:
    """The canonical rows of a span, whose lines are those of `tokenize_rows`. Bad rows are rejected."""
    convert = {row_format: detect_format.load(row_format).convert for row_format in formats if row_format}
    for line in read_lines(span, PLACED_LINE if files else LONGEST_LINE):
        file, number, offset, value, reason = span.path, line.number, line.offset, None, ""
        row_format = formats[0] if formats else None
        if line.content is None:
            reason = describe_too_long("a line")
        elif files:
            at, number, offset, value = msgspec.json.decode(line.content)
            file, row_format = files[at], formats[at] if formats else None
        elif not line.content.strip():
            continue
        else:
            value, reason = decode(line.content.removeprefix(b"\xef\xbb\xbf"))
        rejects.read += 1
        if value is not None:
            try:
                for content in detect_format.as_list(convert[row_format](value)) if row_format else [value]:
                    yield Row(file, number, offset, content)
            except ValueError as error:
                reason = str(error)
        if reason:
            rejects.add(file, number, offset, reason)
