"""A catalogue in use: messages by their English text, and messages of the engine by what they look like."""

from __future__ import annotations

import gettext
import re
import struct
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
DOMAIN = "cockpit"
ENGINE = "engine"
"""The context of messages that the engine makes. Their fields have numbers: {0} cannot be read: {1}."""
SEPARATOR = "\x04"
"""Between context and message in a compiled catalogue (GNU gettext)."""
FIELD = re.compile(r"\{(\d+)\}")
BARE = len(" is ")
"""Fixed characters of a message such as `{0} is {1}`, which many a sentence looks like: its first field has to be one
word."""


class Template(NamedTuple):
    """A message of the engine that has fields."""

    pattern: re.Pattern[str]
    translation: str


class Translation:
    """One language. `find` and `find_sent` return the text that they were given where it has no translation."""

    def __init__(self, language: str, path: Path) -> None:
        self.language = language
        with path.open("rb") as file:
            self._catalogue = gettext.GNUTranslations(file)
        self._templates = build_templates(read_messages(path.read_bytes()))
        self._match = lru_cache(maxsize=2048)(self._match_uncached)

    @classmethod
    def load(cls, language: str) -> Translation:
        return cls(language, FOLDER / language / "LC_MESSAGES" / f"{DOMAIN}.mo")

    def find(self, message: str) -> str:
        """The translation of a message of the cockpit's own."""
        return self._catalogue.gettext(message) if message else message

    def find_sent(self, text: str) -> str:
        """The translation of a text of the engine. Some of its fields are texts of the engine themselves."""
        found = self._catalogue.pgettext(ENGINE, text)
        return found if found != text else self._match(text)

    def _match_uncached(self, text: str) -> str:
        for pattern, translation in self._templates:
            if found := pattern.fullmatch(text):
                return FIELD.sub(partial(self._fill, found.groups()), translation)
        return "\n".join(map(self.find_sent, text.split("\n"))) if "\n" in text else text

    def _fill(self, fields: tuple[str, ...], place: re.Match[str]) -> str:
        text = fields[int(place[1])]
        return self.find_sent(text) if " " in text else text


def build_templates(messages: dict[str, str]) -> list[Template]:
    """The messages of the engine that have fields, those with the most fixed text first."""
    found = []
    for key, translation in messages.items():
        context, separator, english = key.partition(SEPARATOR)
        if separator and context == ENGINE and translation and FIELD.search(english):
            literal = FIELD.split(english)[::2]
            found.append((-sum(map(len, literal)), Template(compile_template(english), translation)))
    return [template for _, template in sorted(found, key=lambda each: each[0])]


def compile_template(message: str) -> re.Pattern[str]:
    """The pattern that finds the fields {0}, {1}, … of a message, each a text that may be empty."""
    parts = FIELD.split(message)
    found = ["(.*?)" if at % 2 else re.escape(part) for at, part in enumerate(parts)]
    if not parts[0] and sum(map(len, parts[::2])) <= BARE:
        found[1] = r"(\S*?)"
    return re.compile("".join(found), re.DOTALL)


def read_messages(compiled: bytes) -> dict[str, str]:
    """All messages of a compiled catalogue, with their contexts (GNU gettext, "The Format of GNU MO Files")."""
    order = "<" if compiled[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack_from(f"{order}3I", compiled, 8)
    found = {}
    for at in range(count):
        texts = []
        for table in (originals, translations):
            length, start = struct.unpack_from(f"{order}2I", compiled, table + 8 * at)
            texts.append(compiled[start : start + length].decode())
        found[texts[0]] = texts[1]
    return found
