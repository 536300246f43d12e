"""Unpacks compressed files."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sys
import tempfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

BUFFER = 2**20
_SMALL = 256 * 2**20
"""Bytes to which any file may unpack."""
_TIMES = 100
"""A larger result may be this many times the size of the file; Parquet and Arrow files compress far less."""
_STREAMED, _STREAMED_TIMES = 1 << 30, 1_000
"""Bytes to which any file may unpack that is read from its beginning to its end, and how many times its size a larger
one may have. gzip reaches 1,030 times with a single repeated byte, text about 10 times."""
_SPARE = 2**30
"""Bytes that stay free on the disk of temporary files."""
FAULTS = (gzip.BadGzipFile, EOFError, zlib.error, zstd.ZstdError)
"""What reading a damaged compressed file raises."""


def gunzip(stream: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=stream, mode="rb"), stream), BUFFER)


def unzstd(stream: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_Bounded(zstd.ZstdFile(stream, "rb"), stream), BUFFER)


class _Bounded(io.RawIOBase):
    """Unpacked content. Raises ValueError when it is implausibly large for its file, before it is read to its end."""

    def __init__(self, unpacked: Any, packed: BinaryIO) -> None:
        self._unpacked = unpacked
        self._left = max(_STREAMED, _STREAMED_TIMES * os.fstat(packed.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        taken: int = self._unpacked.readinto(buffer)
        self._left -= taken
        if self._left < 0:
            raise ValueError(
                f"it unpacks to more than {_STREAMED >> 20:,} MiB and {_STREAMED_TIMES:,} times its size; "
                "unpack it yourself if it is to be trusted"
            )
        return taken

    def close(self) -> None:
        self._unpacked.close()
        super().close()


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
