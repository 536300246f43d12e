"""Packed files as the streams they unpack to."""

from __future__ import annotations

import gzip
import io
import shutil
import sys
import tempfile
import zlib
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

BUFFER = 2**20
_SMALL = 256 * 2**20
"""Bytes that any file may unpack to."""
_TIMES = 100
"""A larger one may unpack to so many times its size; parquet and arrow files pack far less."""
_SPARE = 2**30
"""Bytes left free where temporary files lie."""
FAULTS = (gzip.BadGzipFile, EOFError, zlib.error, zstd.ZstdError)
"""What reading a damaged packed file raises."""


def gunzip(stream: BinaryIO) -> BinaryIO:
    return io.BufferedReader(gzip.GzipFile(fileobj=stream, mode="rb"), BUFFER)


def unzstd(stream: BinaryIO) -> BinaryIO:
    return io.BufferedReader(zstd.ZstdFile(stream, "rb"), BUFFER)


def unpack_to_file(stream: BinaryIO, size: int) -> BinaryIO:
    """A temporary file with all that `stream` gives, for kinds that seek; gone when it is closed, even by a kill.

    `size` is that of the packed file. Raises ValueError when it unpacks to more than such a file ever holds, or than there is room for.
    """
    limit = min(max(_SMALL, _TIMES * size), shutil.disk_usage(tempfile.gettempdir()).free - _SPARE)
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    written = 0
    while block := stream.read(BUFFER):
        written += len(block)
        if written > limit:
            file.close()
            raise ValueError(
                f"it unpacks to more than {max(0, limit) // 2**20} MiB, more than {size} bytes should or than "
                f"{tempfile.gettempdir()} has room for; unpack it yourself if it is to be trusted"
            )
        file.write(block)
    file.seek(0)
    return file
