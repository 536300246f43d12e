"""Completions of what is typed into one line: paths, and the keys and values of settings. The → key accepts one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from textual.suggester import Suggester

MOST = 2000
"""Entries of a folder that are looked at."""
_LAST_WORD = re.compile(r"[^\s,\[\]{}:\"']*\Z")


def complete_path(typed: str, directory: Path) -> str:
    """What is typed, completed to the first path that begins so; empty if there is none. A folder gets a slash."""
    begun = typed.rpartition("/")[2]
    if begun in ("", ".", "..") or (begun == typed and begun.startswith("~")):
        return ""
    try:
        folder = directory / Path(typed.removesuffix(begun)).expanduser()
        names = sorted(
            f"{each.name}/" if each.is_dir() else each.name
            for each in islice(folder.iterdir(), MOST)
            if each.name.startswith(begun)
        )
    except (OSError, RuntimeError, ValueError):
        return ""
    return f"{typed.removesuffix(begun)}{names[0]}" if names else ""


def complete_word(typed: str, words: Iterable[str]) -> str:
    """What is typed, with its last word completed to the first of `words` that begins so; empty if there is none."""
    match = _LAST_WORD.search(typed)
    begun = match[0] if match else ""
    found = next((word for word in words if begun and word.startswith(begun) and word != begun), "")
    return f"{typed[: len(typed) - len(begun)]}{found}" if found else ""


class LineSuggester(Suggester):
    """Completes the last word to one of `words`, else all of the line to a path below `directory`."""

    def __init__(self, words: Sequence[str] = (), directory: Path | None = None) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._words, self._directory = words, directory

    async def get_suggestion(self, value: str) -> str | None:
        if found := complete_word(value, self._words):
            return found
        if self._directory is None:
            return None
        return await asyncio.to_thread(complete_path, value, self._directory) or None


def complete_yaml(lines: Sequence[str], row: int, keys: Mapping[str, Sequence[str]]) -> str:
    """What may follow in a YAML text at the end of line `row`. `keys` are settings by their dotted names, each with the
    values that it may have."""
    line = lines[row]
    indent = len(line) - len(line.lstrip())
    parents: list[str] = []
    level = indent
    for above in reversed(lines[:row]):
        stripped = above.strip()
        if stripped and not stripped.startswith("#") and (own := len(above) - len(above.lstrip())) < level:
            parents.insert(0, stripped.partition(":")[0].lstrip("- "))
            level = own
        if not level:
            break
    prefix = "".join(f"{name}." for name in parents)
    name, colon, value = line.strip().partition(":")
    if not colon:
        below = {key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)}
        found = next((key for key in sorted(below) if name and key.startswith(name) and key != name), "")
        return f"{found[len(name) :]}: " if found else ""
    begun = value.strip()
    values = keys.get(f"{prefix}{name}", ())
    found = next((each for each in values if begun and each.startswith(begun) and each != begun), "")
    return found[len(begun) :]
