"""Processes a large JSONL file in spans: with many processes, bounded memory, and resumable after a kill.

The file is cut at line ends into spans of a few megabytes. The result of a span appears in the work folder under its
number only when it is complete, so a second run does only what is missing. Results are read in the file's order, so
they do not depend on the number of processes or on how often the work was killed.
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
"""Bytes of a span, roughly: enough rows to be worth a task, few enough to fit in memory."""


class Span(NamedTuple):
    """Bytes `[start, end)` of a file; `line` is the number of the first line, from 1."""

    path: str
    start: int
    end: int
    line: int


Work = Callable[[Span, Path, dict[str, Any]], dict[str, Any]]
"""`(span, folder, settings)` -> counts, JSON values. Writes its results into `folder`, which is new and empty. It must
depend on its arguments alone, and its module must be cheap to import, because it runs in worker processes."""


class Line(NamedTuple):
    """A line of a span: its number in the file, the offset of its first byte, and its content without the line end,
    None if too long."""

    number: int
    offset: int
    content: bytes | None


class SpanResult(NamedTuple):
    """A span's results: the folder that the work filled, and the counts that it returned."""

    folder: Path
    counts: dict[str, Any]


def cut(path: Path, size: int | None = None) -> Iterator[Span]:
    """Spans of about `size` bytes (default `SIZE`) that cover the file. Each ends at a line end; a longer line is a
    span of its own."""
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
    """The span's lines. A line of more than `longest` bytes is skipped without being kept in memory. Raises ValueError
    if the file was truncated meanwhile."""
    with Path(span.path).open("rb") as file:
        file.seek(span.start)
        number, offset = span.line, span.start
        while offset < span.end:
            content = file.readline(longest + 1)
            if not content:
                raise ValueError(f"{span.path} became shorter while it was read")
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
    """Do `work` (the "module:function" of a `Work`) for every span; yields the results in the order of the spans.

    `folder` holds the results: keep it until the caller's own result is safe, and use another one for other spans or
    settings. With one process, the work is done in this one. `progress` gets (bytes done, bytes in all). An exception
    raised by `work` ends the step and is passed on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total, done = sum(span.end - span.start for span in spans), 0
    with ExitStack() as stack:
        pool = None
        if processes > 1 and len(spans) > 1:
            context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of this process hold
            pool = stack.enter_context(ProcessPoolExecutor(min(processes, len(spans)), context))
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting: deque[Future[dict[str, Any]]] = deque()
        numbered = enumerate(spans)
        for number, span in enumerate(spans):
            if pool is None:
                counts = _work_on_span(work, span, folder, number, settings)
            else:
                # Only a few spans ahead of the one awaited: results must not pile up when the consumer is slower.
                while len(waiting) < 2 * processes and (following := next(numbered, None)):
                    waiting.append(pool.submit(_work_on_span, work, following[1], folder, following[0], settings))
                counts = waiting.popleft().result()
            done += span.end - span.start
            progress(done, total)
            yield SpanResult(_span_folder(folder, number), counts)


def gather(results: Iterable[SpanResult], into: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Join the files that the spans wrote; `into` maps a file name in their folders to the joined file. Returns the
    spans' counts.

    The joined files appear under their names only when all of them are complete and on disk.
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
    """Opens files to write. They get their names, one after the other, when the block succeeds, and are removed when it
    fails."""
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
    """Remove drafts of `path` that killed processes of this host have left."""
    import psutil

    for draft in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(host_name())}.*"):
        number = draft.name.rpartition(".")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            draft.unlink(missing_ok=True)


def _work_on_span(work: str, span: Span, folder: Path, number: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The counts of a span; the work is done only if its result does not exist yet."""
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
    """Create the folder or empty it: an earlier process with this pid may have been killed at the same span."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
