"""The cache of prepared data: entries named by a hash of all that they were made from, present only when complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from engine.protocol.home import Home, host_name, sync

VERSION = 1
"""Counts changes of what is written or of how rows become tokens: an older entry is then no hit."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def key(files: Mapping[str, Path], settings: Mapping[str, Any], progress: Callable[[int], object]) -> str:
    """The hash of the files' bytes, by role, and the settings. `progress` is told the bytes read so far."""
    done = 0
    digests = {}
    for role, path in files.items():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**22):
                digest.update(chunk)
                done += len(chunk)
                progress(done)
        digests[role] = digest.hexdigest()
    told = json.dumps({"version": VERSION, "files": digests, "settings": settings}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


@contextmanager
def entry(home: Home, name: str) -> Iterator[Path]:
    """A folder to fill; it becomes the entry `name` when the block ends well, and nothing is left when it does not."""
    home.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(home.cache)
    temporary = home.cache / f".{name}.{host_name()}.{os.getpid()}"
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        sync(temporary)
        try:
            temporary.rename(home.cache / name)
        except OSError:
            if not (home.cache / name).is_dir():
                raise
            # Another process finished the same entry meanwhile: theirs is as good.
        sync(home.cache)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(cache: Path) -> None:
    """Remove what killed processes of this host have left half written."""
    for path in cache.glob(f".*.{host_name()}.*"):
        pid = re.fullmatch(r".*\.(\d+)", path.name)
        if pid and not psutil.pid_exists(int(pid[1])):
            shutil.rmtree(path, ignore_errors=True)
