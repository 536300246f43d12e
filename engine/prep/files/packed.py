"""Unpacks compressed files."""

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
"""Bytes to which any file may unpack."""
_TIMES = 100
"""A larger result may be this many times the size of the file; Parquet and Arrow files compress far less."""
_SPARE = 2**30
"""Bytes that stay free on the disk of temporary files."""
FAULTS = (gzip.BadGzipFile, EOFError, zlib.error, zstd.ZstdError)
"""What reading a damaged compressed file raises."""


def gunzip(stream: BinaryIO) -> BinaryIO:
    return io.BufferedReader(gzip.GzipFile(fileobj=stream, mode="rb"), BUFFER)


def unzstd(stream: BinaryIO) -> BinaryIO:
    return io.BufferedReader(zstd.ZstdFile(stream, "rb"), BUFFER)


def unpack_to_file(stream: BinaryIO, size: int) -> BinaryIO:
    """A temporary file with the content of `stream`, for kinds that need to seek. It vanishes when closed, even by a
    kill.

    `size` is that of the compressed file. Raises ValueError if the content is implausibly large or does not fit on the
    disk.
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
