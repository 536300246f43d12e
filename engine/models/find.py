"""Finds models on this machine in the places where common tools store them, and what is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.models import folders
from engine.protocol.home import Home

DEPTH = 4
"""How many levels below a given folder are searched."""


@dataclass(frozen=True)
class Found:
    name: str
    """The name to load it by: a folder, a hub id, or a name in COCKPIT_HOME/models."""
    path: Path
    kind: str
    """`model` or `adapter`."""
    where: str
    """`cockpit`, `huggingface`, `modelscope`, or `folder`."""
    size: int
    """Bytes of all files, following links."""
    problems: list[str]


def find(home: Home, given: Iterable[Path] = ()) -> list[Found]:
    """Find everything that looks like a model, damaged ones included, each folder once."""
    found: dict[Path, Found] = {}
    for each in (*_in_home(home), *_in_huggingface(), *_in_modelscope(), *_in_folders(given)):
        found.setdefault(each.path.resolve(), each)
    return list(found.values())


def _in_home(home: Home) -> Iterator[Found]:
    for folder in _subfolders(home.models):
        yield _describe(folder.name, folder, "cockpit")


def _in_huggingface() -> Iterator[Found]:
    """Search the hub's cache: `models--org--name/snapshots/<commit>/`, the commit in `refs/main`, else the newest."""
    for repository in _subfolders(_huggingface_cache()):
        if not repository.name.startswith("models--"):
            continue
        snapshots = _subfolders(repository / "snapshots")
        if not snapshots:
            continue
        reference = repository / "refs" / "main"
        commit = reference.read_text().strip() if reference.is_file() else ""
        newest = max(snapshots, key=lambda folder: folder.stat().st_mtime)
        folder = repository / "snapshots" / commit
        name = repository.name.removeprefix("models--").replace("--", "/")
        yield _describe(name, folder if commit and folder.is_dir() else newest, "huggingface")


def _in_modelscope() -> Iterator[Found]:
    """Search `hub/models/org/name` of newer versions and `hub/org/name` of older ones. Dots in names are written
    `___`."""
    cache = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    for hub in (cache / "hub" / "models", cache / "models", cache / "hub"):
        for organisation in _subfolders(hub):
            for folder in _subfolders(organisation):
                if folders.detect_kind(folder):
                    yield _describe(str(folder), folder, "modelscope")


def _in_folders(given: Iterable[Path]) -> Iterator[Found]:
    for top in given:
        for folder in _walk(top.absolute(), DEPTH):
            if folders.detect_kind(folder):
                yield _describe(str(folder), folder, "folder")


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for below in _subfolders(folder):
            yield from _walk(below, depth - 1)


def _huggingface_cache() -> Path:
    """The cache that huggingface_hub uses: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    explicit = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(explicit or Path(home) / "hub").expanduser()


def _subfolders(folder: Path) -> list[Path]:
    """The visible subfolders, sorted; none where the folder is missing or not readable."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _describe(name: str, folder: Path, where: str) -> Found:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Found(name, folder, folders.detect_kind(folder) or "model", where, size, folders.find_problems(folder))
