"""Finds the files of a profile's sources, by names alone."""

from __future__ import annotations

from pathlib import Path

from engine.options.data import DataOptions, SourceOptions
from engine.prep import dataset_info
from engine.prep.sources import HUB, Progress, fetch, list_files, parse_hub_source
from engine.protocol.home import Home

PARTS = ("train", "validation", "test")


def resolve_source(source: SourceOptions, data: DataOptions, directory: Path, part: str = "train") -> SourceOptions:
    """The source itself if it is a path or on the hub, else the entry of that name in `data.catalog`, with the
    profile's own options taking precedence.

    Raises ValueError if it is neither, OSError if the catalogue cannot be opened.
    """
    if source.source.startswith(HUB):
        return source
    try:
        list_files(source.source, directory, part)
    except ValueError:
        if data.catalog is None:
            raise
    else:
        return source
    listed = dataset_info.read((directory / Path(data.catalog).expanduser()).absolute())
    found = listed[source.source]
    return found.model_copy(update={name: getattr(source, name) for name in source.model_fields_set - {"source"}})


def list_paths(
    source: SourceOptions,
    directory: Path,
    home: Home,
    progress: Progress,
    part: str = "train",
    *,
    fetches: bool = True,
) -> list[Path]:
    """The files of a resolved source that belong to a part, in reading order; a hub source is fetched, if `fetches`.
    Raises ValueError."""
    if source.source.startswith(HUB):
        return [fetch(parse_hub_source(source.source), home, progress, fetches=fetches)]
    return list_files(source.source, directory, part)
