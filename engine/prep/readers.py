"""Reads data files record by record, each with its place; no file is loaded into memory as a whole.

A record that cannot be read has a reason instead of a value; a file that cannot be read raises ValueError. Each kind of
file has a module in `engine/prep/files/`, and may be compressed (.gz, .zst).
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from engine.prep.files import KINDS, PACKINGS, SEEKING
from engine.prep.files.lines import LONGEST_LINE
from engine.prep.files.record import BadFile, Record, decode

__all__ = ["LONGEST_LINE", "READERS", "Record", "check_suffix", "decode", "read"]

READERS = KINDS
_BUFFER = 2**20
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


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


def read(path: Path, progress: Callable[[int], object] = lambda _: None) -> Iterator[Record]:
    """The records of a file, by its suffix. `progress` gets the bytes of the file on disk that were read so far.

    Raises ValueError for a name or content that cannot be read, OSError if the file cannot be opened.
    """
    suffix = check_suffix(path)
    if not path.is_file():
        # Reading a named pipe or a device could block for ever.
        raise ValueError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
    return _read(path, suffix, progress)


def _read(path: Path, suffix: str, progress: Callable[[int], object]) -> Iterator[Record]:
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
            if kind not in SEEKING:
                _check_encoding(stream)
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


def _check_encoding(stream: BinaryIO) -> None:
    if isinstance(stream, io.BufferedReader):
        start = stream.peek(4)[:4]
        for mark, encoding in _MARKS.items():
            if start.startswith(mark):
                raise ValueError(f"it is written in {encoding}; save it as UTF-8")


def _read_errors(packing: str) -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged file raises."""
    if not packing:
        return (MemoryError,)
    from engine.prep.files.packed import FAULTS

    return (MemoryError, *FAULTS)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
