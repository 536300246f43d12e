"""Reads the small files of a model folder, whatever they hold: within bounds, and never from a pipe or a device."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from engine.models.weights import DamagedFile
from engine.protocol.text import name_kind

LARGEST_JSON = 256 << 20
"""Bytes. The largest files that are published, tokenizers of 250,000 tokens, have 40 MB."""
MOST_FILES = 10_000
"""Files of a folder that are looked at."""


def read_bytes(path: Path, largest: int = LARGEST_JSON) -> bytes:
    """The content of a regular file. Raises DamagedFile."""
    try:
        # A pipe without a writer would be opened only when there is one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DamagedFile(f"{path.name} is missing") from None
    except OSError as error:
        raise DamagedFile(f"{path.name} cannot be read ({error.strerror})") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DamagedFile(f"{path.name} is {describe_kind(found.st_mode)}, not a file")
        if found.st_size > largest:
            raise DamagedFile(
                f"{path.name} has {found.st_size:,} bytes, more than the {largest:,} that such a file has"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(largest)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DamagedFile."""
    content = read_bytes(path)
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise DamagedFile(f"{path.name} cannot be read (its values are nested too deeply)") from None
    except ValueError as error:
        raise DamagedFile(f"{path.name} cannot be read ({error})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DamagedFile."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DamagedFile(f"{path.name} holds no settings, but {name_kind(content)}")
    return content


def find_special_files(folder: Path) -> list[str]:
    """A sentence for each thing in the folder that a library would wait for, or never come to the end of."""
    found = []
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        return [f"the folder cannot be read ({error.strerror})"]
    if len(entries) > MOST_FILES:
        return [f"the folder has {len(entries):,} files: no model has more than {MOST_FILES:,}"]
    for entry in sorted(entries, key=lambda each: each.name):
        try:
            mode = entry.stat().st_mode
        except FileNotFoundError:
            continue  # a link to a missing file is reported where the file is needed
        except OSError as error:
            found.append(f"{entry.name} cannot be read ({error.strerror})")
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            found.append(f"{entry.name} is {describe_kind(mode)}, not a file")
    return found


def describe_kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
