"""The problems of a profile, and where in its file each of them is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from engine.config.overrides import read_key


@dataclass(frozen=True)
class Issue:
    """One problem of a profile. `code` is one of `codes.CODES`. `line` and `column` count from 1; both are 0 where the
    file has no such place (an override)."""

    message: str
    code: str = field(kw_only=True)
    key: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        said = f"{self.key}: {self.message}" if self.key else self.message
        return " ".join(part for part in (self.place, said) if part)

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Found:
    """A problem by the keys of its setting, before its place is known."""

    keys: tuple[str | int, ...]
    message: str
    code: str = field(kw_only=True)


class Places:
    """Finds the line and column of keys. A key that `--set` overrides has no place in the file."""

    def __init__(self, document: CommentedMap, file: str, overridden: Collection[tuple[str | int, ...]]) -> None:
        self.document, self.file, self.overridden = document, file, overridden

    def issue(self, found: Found) -> Issue:
        keys: tuple[str | int, ...] = tuple(read_key(key) if isinstance(key, str) else key for key in found.keys)
        name = ".".join(map(str, keys))
        if any(keys[:length] in self.overridden for length in range(1, len(keys) + 1)):
            return Issue(found.message, code=found.code, key=name, file="--set")
        line, column = self._place(keys)
        return Issue(found.message, code=found.code, key=name, file=self.file, line=line, column=column)

    def _place(self, keys: tuple[str | int, ...]) -> tuple[int, int]:
        """Line and column of the key, or of the nearest mapping around it that is in the file."""
        node: Any = self.document
        place = (1, 1)
        for key in keys:
            try:
                if isinstance(node, CommentedMap):
                    key = key if key in node else str(key)
                    line, column = node.lc.key(key)
                elif isinstance(node, CommentedSeq):
                    line, column = node.lc.item(key)
                else:
                    break
                place = (line + 1, column + 1)
                node = node[key]
            except (KeyError, IndexError, TypeError, AttributeError):
                break
        return place
