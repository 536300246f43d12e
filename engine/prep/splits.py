"""Which files of a folder are for training, validation and test, by their names: `train-00000-of-00001.parquet`,
`dev.jsonl`, `test/rows.csv`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")
_MOST = 5
"""Files listed by name."""


class Choice(NamedTuple):
    """The files of a folder that are read for a part, and those that are left to other parts."""

    taken: list[Path]
    left: list[Path]


def find_split(path: Path) -> str | None:
    """`train`, `validation` or `test` if a path says so, in the name of the file before those of its folders; None for
    a path that names none, or several at once."""
    for name in (path.name, *(part for part in reversed(path.parent.parts))):
        found = {_WORDS[word] for word in _WORD.findall(name.lower())}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def choose(paths: Iterable[Path], root: Path, part: str) -> Choice:
    """The files below `root` that belong to a part. A file that names no split is for training; if no two files name
    different ones, all of them are taken.

    Raises ValueError if there are splits, and none for this part.
    """
    listed = [(path, find_split(path.relative_to(root))) for path in paths]
    if len({split for _, split in listed}) < 2 or {split for _, split in listed} == {None, "train"}:
        return Choice([path for path, _ in listed], [])
    wanted = ("train", None) if part == "train" else (part,)
    taken = [path for path, split in listed if split in wanted]
    left = [path for path, split in listed if split not in wanted]
    if not taken:
        raise ValueError(f"{root} holds splits, and none for {part}: name one of its files ({name_files(left, root)})")
    return Choice(taken, left)


def name_files(paths: list[Path], root: Path) -> str:
    """Some of the files by name, for a message."""
    names = ", ".join(str(path.relative_to(root)) for path in paths[:_MOST])
    return f"{names} and {len(paths) - _MOST} more" if len(paths) > _MOST else names
