"""The user's settings of the app, in `settings.yaml` of the home: read at start, written when something is chosen.

The file may be written by hand: comments and keys that no version here knows stay. A file that cannot be read costs the
settings, not the app; before it is replaced it is put aside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from cockpit.language.translate import tr
from engine.protocol.home import Home, make_private, write_private
from engine.protocol.terminal import escape_json
from engine.protocol.text import first_line

Value = TypeVar("Value")
LARGEST = 1 << 16
"""Bytes of the file that are read."""


class Settings:
    """Values by dotted key, `section.name`. Nothing here raises for a disk that is full: `failed` is called."""

    def __init__(self, home: Home) -> None:
        self.path = home.settings
        self.failed: Callable[[str], object] = lambda reason: None
        self.damage = ""
        """Why the file was not read; empty when it was, or when there is none."""
        self._document: dict[str, Any] | None = None
        self._text = ""

    def read_early(self, key: str, default: str = "") -> str:
        """A word at the top level, before the first paint, which cannot wait for a YAML parser to be imported."""
        found = re.search(rf"^{key}:\s*[\"']?([\w-]+)", self._read_text(), re.MULTILINE)
        return found[1] if found else default

    def load(self) -> dict[str, Any]:
        """Read the file, unless that is done."""
        if self._document is None:
            self.damage = ""
            text = self._read_text()
            try:
                self._document, self._text = _parse(text), text
            except ValueError as error:
                self._document, self._text = {}, ""
                self.damage = first_line(error)[:200]
        return self._document

    def _read_text(self) -> str:
        try:
            if not self.path.exists():
                return ""
            if not self.path.is_file():
                raise ValueError(tr("it is not a file"))
            with self.path.open("rb") as file:
                content = file.read(LARGEST + 1)
            if len(content) > LARGEST:
                raise ValueError(tr("it is larger than {limit} KiB", limit=LARGEST >> 10))
            return content.decode()
        except (OSError, ValueError) as error:
            self.damage = first_line(error)[:200]
            return ""

    def get(self, key: str, default: Value) -> Value:
        """The value of a key, if it has the type of `default`: what a hand wrote wrongly is not used."""
        found: Any = self.load()
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(default, list) and isinstance(found, list) and not all(isinstance(each, str) for each in found):
            return default
        return found if default is None or type(found) is type(default) else default

    def get_mapping(self, key: str) -> dict[str, Any]:
        """A section of the top level; empty unless it is a mapping."""
        if not re.search(rf"^[\"']?{key}\b", self._read_text(), re.MULTILINE):
            return {}  # no need to import a parser
        found = self.load().get(key)
        return found if isinstance(found, dict) else {}

    def set(self, key: str, value: str | bool | int | float | list[str]) -> None:
        """Keep a value. Another app's changes to other keys stay."""
        self._document = None
        if self.get(key, None) == value and not self.damage:
            return
        try:
            make_private(self.path.parent)
            if self.damage:
                self._put_aside()
            text = _edit(self._text, key, value)
            document = _parse(text)
            write_private(self.path, text.encode())
        except (OSError, ValueError) as error:
            self.failed(f"{self.path}: {error}")
            _put(self.load(), key, value)  # for this app at least
            return
        self._text, self._document = text, document

    def _put_aside(self) -> None:
        """Rename a file that cannot be read, so that nothing that somebody wrote is lost."""
        named = f"{self.path.name}.damaged"
        places = (self.path.with_name(f"{named}-{number}" if number else named) for number in range(1000))
        kept = next(path for path in places if not path.exists())
        self.path.rename(kept)
        self.failed(
            tr(
                "{name} could not be read ({damage}); it is now {kept}",
                name=self.path.name,
                damage=self.damage,
                kept=kept.name,
            )
        )
        self.damage = ""


def _parse(text: str) -> dict[str, Any]:
    """The mapping that the text is. Raises ValueError."""
    if not text.strip():
        return {}
    from ruamel.yaml import YAML  # only where there is a file: the first paint need not wait for it
    from ruamel.yaml.error import YAMLError

    from engine.config import yaml_text

    try:
        yaml_text.check(text)
        document = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(tr("it is not a mapping of settings"))
    return document


def _edit(text: str, key: str, value: object) -> str:
    """The text with the key set; comments and order stay. Raises ValueError."""
    from cockpit.profiles.yaml_edit import set_value

    written = escape_json(json.dumps(value, ensure_ascii=False))
    try:
        return set_value(text, key, written)
    except ValueError:
        section = key.rpartition(".")[0]
        if section and not isinstance(_parse(text).get(section, {}), dict):  # `runs: 3`: a mapping takes its place
            return set_value(set_value(text, section, "{}"), key, written)
        raise


def _put(document: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = document.get(section)
        document[section] = document = inner if isinstance(inner, dict) else {}
    document[name] = value
