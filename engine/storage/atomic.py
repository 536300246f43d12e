"""Writes folders that are complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from engine.protocol.home import sync
from engine.protocol.text import first_line


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Create `folder` with the files that `fill` writes, or not at all. Raises OSError, and then leaves nothing
    behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        _fill(temporary, fill)
        _sync(temporary)
        if folder.exists():  # left by an earlier attempt, which this one replaces
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


def _fill(folder: Path, fill: Callable[[Path], object]) -> None:
    """Call `fill`, and raise the libraries' own errors for a failed write as OSError."""
    from safetensors import SafetensorError

    try:
        fill(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except RuntimeError as error:
        if "write" not in str(error) and "writing" not in str(error):
            raise
        raise OSError(first_line(error)) from error  # torch.save


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)
