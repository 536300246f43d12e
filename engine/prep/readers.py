"""Reads data files record by record, each with its place; no file is loaded into memory as a whole.

A record that cannot be read has a reason instead of a value; a file that cannot be read raises ValueError. Each kind of
file has a module in `engine/prep/files/`, and may be compressed (.gz, .zst). Text is UTF-8 unless its byte order mark
or the caller says otherwise.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from engine.prep.files import KINDS, PACKINGS, SEEKING
from engine.prep.files.encodings import LOOKED_AT, find_encoding, open_as_utf8
from engine.prep.files.lines import LONGEST_LINE
from engine.prep.files.record import BOM, BadFile, Record, decode

__all__ = ["LONGEST_LINE", "READERS", "Record", "check_suffix", "decode", "find_kind", "is_lines", "read"]

READERS = KINDS
_BUFFER = 2**20
_START = 2**16
"""Bytes by which a file is known without a telling name."""
_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}
_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def check_suffix(path: Path) -> str:
    """The kind of a file by its name, compression included: `.jsonl`, `.csv.gz` … Raises ValueError, listing the known
    kinds."""
    packing = path.suffix.lower() if path.suffix.lower() in PACKINGS else ""
    kind = (Path(path.stem) if packing else path).suffix.lower()
    if kind not in KINDS:
        raise ValueError(
            f"{path.name}: cannot read {kind + packing or 'a file without suffix'}; known are {', '.join(KINDS)}, "
            f"each also packed as {' or '.join(PACKINGS)}"
        )
    return kind + packing


def find_kind(path: Path) -> str:
    """The kind of a file by its name; for a file without a suffix, such as a blob of the hub's cache, by its content.
    A link counts by its own name. Raises ValueError."""
    if not path.suffix and path.is_file() and (kind := _kind_of_content(path)):
        return kind
    return check_suffix(path)


def _kind_of_content(path: Path) -> str:
    """The kind of a file that is Parquet, Arrow or JSON, packed or not; empty for any other."""
    with path.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        packing = next((ending for magic, ending in _PACKED.items() if start.startswith(magic)), "")
        with ExitStack() as stack:
            stream = stack.enter_context(_load(PACKINGS[packing])(raw)) if packing else raw
            damaged: tuple[type[Exception], ...] = (ValueError, OSError, *_read_errors(packing))
            try:
                start = stream.read(_START)
            except damaged:
                return ""
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
    if not kind and start.removeprefix(BOM).lstrip()[:1] in (b"{", b"["):
        kind = ".json"  # its reader takes rows line by line as well
    return kind + packing if kind else ""


def is_lines(path: Path, encoding: str | None = None) -> bool:
    """Whether a file is JSONL in UTF-8, so that its lines can be read in place. A file of that name may hold a list, or
    rows over several lines. Raises ValueError for UTF-16 without a byte order mark."""
    if find_kind(path) != ".jsonl":
        return False
    from engine.prep.files.json_document import is_document

    with path.open("rb") as file:
        start = file.read(_START)
    return _find_encoding(path, start, encoding) == "utf-8" and not is_document(start)


def read(
    path: Path, progress: Callable[[int], object] = lambda _: None, encoding: str | None = None
) -> Iterator[Record]:
    """The records of a file, by its suffix. `progress` gets the bytes of the file on disk that were read so far.

    Raises ValueError for a name or content that cannot be read, OSError if the file cannot be opened.
    """
    suffix = find_kind(path)
    if not path.is_file():
        # Reading a named pipe or a device could block for ever.
        raise ValueError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
    return _read(path, suffix, progress, encoding)


def _read(path: Path, suffix: str, progress: Callable[[int], object], given: str | None) -> Iterator[Record]:
    packing = next((ending for ending in PACKINGS if suffix.endswith(ending)), "")
    kind = suffix.removesuffix(packing)
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb", buffering=_BUFFER))
        size = path.stat().st_size
        damaged: tuple[type[Exception], ...] = (ValueError, *_read_errors(packing))
        try:
            stream: BinaryIO = raw
            if packing:
                stream = stack.enter_context(_load(PACKINGS[packing])(raw))
                if kind in SEEKING:
                    from engine.prep.files.packed import unpack_to_file

                    stream = stack.enter_context(unpack_to_file(stream, size))
            if kind not in SEEKING and isinstance(stream, io.BufferedReader):
                encoding = find_encoding(stream.peek(LOOKED_AT)[:LOOKED_AT], given)
                stream = stream if encoding == "utf-8" else open_as_utf8(stream, encoding)
            taken = 0
            for record in _load(KINDS[kind])(stream, path):
                taken = max(taken, min(size, raw.tell()))
                progress(taken)
                yield record
        except BadFile:
            raise
        except damaged as error:
            raise ValueError(f"{path.name} cannot be read: {str(error) or type(error).__name__}") from error
        progress(size)


def _find_encoding(path: Path, start: bytes, given: str | None) -> str:
    try:
        return find_encoding(start[:LOOKED_AT], given)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def _read_errors(packing: str) -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged file raises."""
    if not packing:
        return (MemoryError,)
    from engine.prep.files.packed import FAULTS

    return (MemoryError, *FAULTS)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
