"""A long step over a large JSONL file, in pieces: many processes, bounded memory, and after a kill it goes on where it stopped.

The file is cut at line ends into spans of some megabytes. Each span is worked on by itself and its result appears in the work
folder under its number only when it is complete, so a second run does what is missing and nothing twice. Results are taken in the
file's order: how many processes there were, and how often the step was killed, does not show.
"""

from __future__ import annotations

import glob
import importlib
import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from engine.protocol.home import host_name, sync

SIZE = 8 * 2**20
"""Bytes of a span, about: enough rows to be worth a task, few enough to be held."""


class Span(NamedTuple):
    """Bytes `[start, end)` of a file; `line` is the first one's number, from 1."""

    path: str
    start: int
    end: int
    line: int


Work = Callable[[Span, Path, dict[str, Any]], dict[str, Any]]
"""`(span, folder, settings)` -> counts as JSON has them. Writes its results into `folder`, which is new and empty. It must
depend on its arguments alone, and importing its module must be cheap: it runs in processes of its own."""


class Line(NamedTuple):
    """A line of a span: its number in the file, its first byte, and what it holds without its end; None when it is too long to hold."""

    number: int
    offset: int
    content: bytes | None


class SpanResult(NamedTuple):
    """A span's results: the folder with what its work wrote, and what it returned."""

    folder: Path
    counts: dict[str, Any]


def cut(path: Path, size: int | None = None) -> Iterator[Span]:
    """Spans of `size` bytes (`SIZE`) that cover the file, each ending behind a line end; a longer line is a span of its own."""
    size = size or SIZE
    start, line, passed, seen = 0, 1, 0, 0
    with path.open("rb") as file:
        while block := file.read(max(2**16, size // 8)):
            end = block.rfind(b"\n") + 1
            if end and seen + end - start >= size:
                passed += block.count(b"\n", 0, end)
                yield Span(str(path), start, seen + end, line)
                line, passed, start = line + passed, block.count(b"\n", end), seen + end
            else:
                passed += block.count(b"\n")
            seen += len(block)
    if start < seen:
        yield Span(str(path), start, seen, line)


def read_lines(span: Span, longest: int) -> Iterator[Line]:
    """The span's lines. One of more than `longest` bytes is passed over without being held. Raises ValueError when the file was cut."""
    with Path(span.path).open("rb") as file:
        file.seek(span.start)
        number, offset = span.line, span.start
        while offset < span.end:
            content = file.readline(longest + 1)
            if not content:
                raise ValueError(f"{span.path} has become shorter while it was read")
            size = len(content)
            complete = size <= longest or content.endswith(b"\n")
            while not complete:
                rest = file.readline(2**20)
                size += len(rest)
                complete = not rest or rest.endswith(b"\n")
                content = b""
            yield Line(number, offset, content.rstrip(b"\r\n") if content else None)
            number, offset = number + 1, offset + size


def work_through(
    spans: list[Span],
    work: str,
    settings: dict[str, Any],
    folder: Path,
    processes: int,
    progress: Callable[[int, int], object],
) -> Iterator[SpanResult]:
    """Do `work` (a "module:function" of kind `Work`) for every span; yields results in the spans' order as they come.

    `folder` holds them; keep it until the step's own result is safe, and use a new one for other spans or settings. With one
    process all is done here. `progress` is told (bytes done, bytes in all). Whatever `work` raises ends the step and passes through.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total, done = sum(span.end - span.start for span in spans), 0
    with ExitStack() as stack:
        pool = None
        if processes > 1 and len(spans) > 1:
            context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads hold locks here
            pool = stack.enter_context(ProcessPoolExecutor(min(processes, len(spans)), context))
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting: deque[Future[dict[str, Any]]] = deque()
        numbered = enumerate(spans)
        for number, span in enumerate(spans):
            if pool is None:
                counts = _work_on_span(work, span, folder, number, settings)
            else:
                # A few ahead of the one that is waited for: results must not pile up when whoever takes them is slower.
                while len(waiting) < 2 * processes and (following := next(numbered, None)):
                    waiting.append(pool.submit(_work_on_span, work, following[1], folder, following[0], settings))
                counts = waiting.popleft().result()
            done += span.end - span.start
            progress(done, total)
            yield SpanResult(_span_folder(folder, number), counts)


def gather(results: Iterable[SpanResult], into: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Join what the spans wrote: file name in their folders -> the file to make of it. Returns their counts.

    The files appear under their names only when all of them are complete and on the disk.
    """
    counts = []
    with write_together(*into.values()) as files:
        for done in results:
            for name, file in zip(into, files, strict=True):
                with (done.folder / name).open("rb") as part:
                    shutil.copyfileobj(part, file, 2**20)
            counts.append(done.counts)
    return counts


@contextmanager
def write_together(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Files to write, open; when the block ends well they take these names, one after the other, else they are removed."""
    drafts = [path.with_name(f".{path.name}.{host_name()}.{os.getpid()}") for path in paths]
    for path in paths:
        _remove_stale_drafts(path)
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(draft.open("wb")) for draft in drafts]
            yield list(files)
        for draft, path in zip(drafts, paths, strict=True):
            sync(draft)
            draft.replace(path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _remove_stale_drafts(path: Path) -> None:
    """Remove the drafts of `path` that killed processes of this host have left."""
    import psutil

    for draft in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(host_name())}.*"):
        number = draft.name.rpartition(".")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            draft.unlink(missing_ok=True)


def _work_on_span(work: str, span: Span, folder: Path, number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The counts of a span; done only if its result is not there yet."""
    place = _span_folder(folder, number)
    if not place.is_dir():
        module, _, name = work.partition(":")
        function: Work = getattr(importlib.import_module(module), name)
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        _make_empty(draft)
        (draft / "counts.json").write_text(json.dumps(function(span, draft, settings)), encoding="utf-8")
        draft.rename(place)
    counts: dict[str, Any] = json.loads((place / "counts.json").read_text(encoding="utf-8"))
    return counts


def _span_folder(folder: Path, number: int) -> Path:
    return folder / f"{number:06}"


def _make_empty(folder: Path) -> None:
    """A process of this number may have been killed at this very work."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
