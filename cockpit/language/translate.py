"""The language of the app and of the command line: English in the sources, others from a gettext catalogue.

    tr("{steps:,} steps left", steps=left)      what the cockpit says itself
    tr_engine(problem.title)                    what the engine has said, which speaks English to every client

`python -m cockpit.language.catalogue` brings the catalogue up to date with the sources. Nothing is read for English.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cockpit.language.loaded_catalogue import Translation

LANGUAGES = {"en": "English", "zh": "中文"}
"""Code -> name in the language itself."""

_chosen: Translation | None = None


def tr(message: str, /, **fields: object) -> str:
    """The message in the user's language, with its fields filled in as by `str.format`."""
    said = _chosen.find(message) if _chosen is not None else message
    return said.format(**fields) if fields else said


def tr_engine(text: str) -> str:
    """A text that the engine has made, in the user's language; as it is where no message of the engine looks like
    it. The texts of other versions of the engine and of other programs stay as they are, too."""
    return _chosen.find_sent(text) if _chosen is not None and text else text


def count_forms(noun: str) -> tuple[str, str]:
    """The messages that say one and several of a noun: `{count} row` and `{count} rows`, `reply` and `replies`."""
    several = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{{count}} {noun}", f"{{count}} {several}"


def tr_all(texts: Mapping[str, str]) -> dict[str, str]:
    """A table of texts with its values in the user's language."""
    return {key: tr(text) for key, text in texts.items()}


def read_language(home: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """The language that the settings of a home name, else the one of the environment's locale, as gettext reads it.
    The settings are not parsed, nor is anything imported: `cockpit --help` shall not wait for it."""
    home = home or environment.get("COCKPIT_HOME") or "~/.cockpit"
    try:
        with open(f"{os.path.expanduser(home)}/settings.yaml", encoding="utf-8", errors="replace") as file:  # noqa: PTH111
            found = re.search(r"^language:\s*[\"']?([\w-]+)", file.read(1 << 16), re.MULTILINE)
    except OSError:
        found = None
    if found and found[1] in LANGUAGES:
        return found[1]
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environment.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def set_language(language: str) -> None:
    """Speak this language from now on. What is on the screen stays."""
    global _chosen
    _chosen = None
    if language != "en":
        from cockpit.language.loaded_catalogue import Translation

        _chosen = Translation.load(language)


def current_language() -> str:
    """The code of the language that is spoken."""
    return "en" if _chosen is None else _chosen.language
