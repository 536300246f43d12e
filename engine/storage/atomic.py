"""Folders that are complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.protocol.home import sync


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make `folder` with what `fill` puts into it, complete or not at all. Raises OSError, and then nothing is left behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        _fill(temporary, fill)
        _sync(temporary)
        if folder.exists():  # an earlier attempt's, superseded by this one
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def _fill(folder: Path, fill: Callable[[Path], object]) -> None:
    """`fill`, with what the libraries make of a failed write as the OSError that it was."""
    from safetensors import SafetensorError

    try:
        fill(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except RuntimeError as error:
        if "write" not in str(error) and "writing" not in str(error):
            raise
        raise OSError(str(error).splitlines()[0]) from error  # torch.save


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)
