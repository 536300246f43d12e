"""Reads the header of a safetensors file, without a training library.

The format: https://huggingface.co/docs/safetensors#format. Eight bytes with the header's length (little endian), the
header as JSON (`name -> {dtype, shape, data_offsets}`, and `__metadata__`), then the bytes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LFS = b"version https://git-lfs.github.com/spec/"
_LARGEST_HEADER = 100_000_000


class DamagedFile(ValueError):
    """A file of weights is damaged. The message names the file and the problem."""


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of the first byte in the file."""
    end: int


def is_lfs_pointer(path: Path) -> bool:
    """Whether a clone without git-lfs left a pointer in place of the content."""
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises DamagedFile when header and size do not match."""
    if is_lfs_pointer(path):
        raise DamagedFile(f"{path.name} is a git-lfs pointer, not the weights: run `git lfs pull` in its repository")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise DamagedFile(f"{path.name} is not a safetensors file, or only its first {size} bytes")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {name: _read_tensor(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DamagedFile(f"{path.name} has an unreadable header") from None
    expected = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != expected:
        raise DamagedFile(f"{path.name} has {size} bytes of {expected}: the copy was cut off")
    return tensors


def _read_tensor(entry: Any, start: int) -> Tensor:
    """A tensor's entry in a header; the bytes of tensors begin at `start`. Raises ValueError, KeyError, TypeError."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in (*shape, begin, end)) or begin > end:
        raise ValueError("a size or an offset is no number of elements or bytes")
    return Tensor(str(entry["dtype"]), shape, start + begin, start + end)


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names.

    It does not depend on how the tensors are distributed over files, or on the format of the headers.
    """
    entries = sorted((name, path, tensor) for path in files for name, tensor in read_header(path).items())
    total = hashlib.sha256()
    for name, path, tensor in entries:
        total.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        with path.open("rb") as file:
            file.seek(tensor.begin)
            left = tensor.end - tensor.begin
            while left:
                piece = file.read(min(left, 1 << 20))
                total.update(piece)
                left -= len(piece)
    return total.hexdigest()
