"""The manifest of a folder: size and SHA-256 of each of its files, written last, so that damage is found and named.

A folder without a manifest was written by an older version, and passes. `Stamps` remembers which files have been hashed
and not touched since, so that a large folder is hashed once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine.protocol.home import write_private

FILE = "manifest.json"
HASHED = 256 * 2**20
"""Bytes of a model up to which its files are hashed whenever it is loaded."""
_THREADS = 4


def write(folder: Path, **facts: Any) -> None:
    """Write the manifest of all files below `folder`, with further `facts`. Raises OSError."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / FILE]
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = list(threads.map(_hash, paths))
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }
    write_private(folder / FILE, json.dumps({**facts, "files": files}, indent=1).encode())


def read(folder: Path) -> dict[str, Any]:
    """The content of the manifest; empty when there is none, or when it is damaged (see `find_damage`)."""
    try:
        content = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def find_damage(folder: Path, *, stamps: Path | None = None) -> str:
    """What is wrong with the first damaged file of `folder`; empty when all are as they were written.

    `stamps` is a file beside the folder: a file whose inode, size and times are those of its last check is not hashed
    again.
    """
    if not (folder / FILE).exists():
        return ""
    files = _list_files(folder)
    if not files:
        return f"{FILE} cannot be read"
    known = _read_stamps(stamps)
    fresh: dict[str, list[int]] = {}
    for problem in _check_files(folder, files, True, known, fresh):
        return problem
    if stamps is not None and fresh != known:
        with contextlib.suppress(OSError):  # only the next check is slower
            write_private(stamps, json.dumps(fresh).encode())
    return ""


def find_damage_on_load(folder: Path) -> str:
    """The same for the files of `folder` itself, which a model is loaded from. Sizes are always compared; hashes where
    there are no more than `HASHED` bytes, as with adapters, so that loading a large model does not take longer."""
    files = {name: each for name, each in _list_files(folder).items() if "/" not in name}
    if not files:
        return f"{FILE} cannot be read" if (folder / FILE).exists() else ""
    try:
        hashes = sum(each["bytes"] for each in files.values()) <= HASHED
    except (KeyError, TypeError):
        return f"{FILE} cannot be read"
    return next(_check_files(folder, files, hashes, {}, {}), "")


def _list_files(folder: Path) -> dict[str, Any]:
    files = read(folder).get("files")
    return files if isinstance(files, dict) else {}


def stamp(folder: Path, stamps: Path) -> None:
    """Note that all files of `folder` are as they were written, which has just been done: the next check need not hash
    them."""
    with contextlib.suppress(OSError):  # only that check is slower
        content = {name: _make_stamp((folder / name).stat()) for name in _list_files(folder)}
        write_private(stamps, json.dumps(content).encode())


def _make_stamp(found: os.stat_result) -> list[int]:
    # The inode's change time cannot be set back: every write moves it.
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _check_files(
    folder: Path, files: dict[str, Any], hashes: bool, known: dict[str, list[int]], fresh: dict[str, list[int]]
) -> Iterator[str]:
    """Yield what is wrong, file by file; `fresh` gets the stamps of the whole ones."""
    for name, expected in files.items():
        path = folder / name
        try:
            found = path.stat()
            if not path.is_file():
                yield f"{name} is not a file"
                continue
            if found.st_size != expected["bytes"]:
                yield f"{name} has {found.st_size} bytes rather than {expected['bytes']}"
                continue
            stamp = _make_stamp(found)
            if hashes and known.get(name) != stamp and _hash(path) != expected["sha256"]:
                yield f"{name} is damaged: its bytes are not those that were written"
                continue
            fresh[name] = stamp
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror})"
        except (KeyError, TypeError):
            yield f"{FILE} cannot be read"


def _read_stamps(path: Path | None) -> dict[str, list[int]]:
    try:
        content = json.loads(path.read_bytes()) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
