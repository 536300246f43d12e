"""What may leave the machine in a bundle: texts without secrets, paths, names of people and hosts, and rows.

Two things are certain, and hold together: structured entries keep only fields that are known to hold no such text
(`bundle_parts`), and whatever free text is left goes through a `Redactor`, which knows the names of this machine, the
shapes of secrets and paths, and the rows of the run.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SECRET_NAME = re.compile(r"key|token|secret|passw|pwd|credential|auth|cookie|session", re.IGNORECASE)
"""Environment variables and settings whose values are secrets."""
PLAIN = frozenset({"true", "false", "none", "null", "auto", "default"})
"""Values that are no secrets, whatever they are the values of, such as TOKENIZERS_PARALLELISM."""
SHORTEST = 4
"""Characters from which a value of such a variable is looked for."""
GRAM = 4
"""Words in succession by which the text of a row is known."""
SHORT_ROW = 6
"""Characters from which a text of fewer words is looked for as a whole."""

_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)"
    r"|\b(?:(?:hf|sk|pk|rk|gh[opsur]|github_pat|glpat|xox[abprs]|npm|pypi|dop_v1)[-_]|AKIA|ASIA|AIza|ya29)"
    r"(?=[a-z_\-.]*[A-Z0-9])[A-Za-z0-9_\-.]{8,}"
    r"|\bey[JK][A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"
    r"|(?<=://)[^\s/@'\"]+:[^\s/@'\"]*(?=@)"
    r"|(?<![A-Za-z0-9+_\-])(?=[A-Za-z+_\-]*[0-9])[A-Za-z0-9+_\-]{24,}={0,2}(?![A-Za-z0-9])",
    re.DOTALL,
)
_NAMED_SECRET = re.compile(
    r"(?P<name>\b(?!KeyError\b)[\w\-.]{0,200}(?:key|token|secret|passw(?:or)?d|pwd|credential|authorization|cookie)"
    r"[\w\-]{0,200}[\"']?\s*(?:[=:]|\bis\b)\s*(?:Bearer\s+|Basic\s+)?)(?P<value>\"[^\"\n]+\"|'[^'\n]+'|[^\s,;)}\]]+)"
    r"|(?P<scheme>\bBearer\s+|\bBasic\s+)(?P<credentials>[^\s,;'\"]+)",
    re.IGNORECASE,
)
_QUOTED_PATH = re.compile(r"(['\"`])(?:file://)?(?:~|\.{1,2})?/[^'\"`\n]*\1")
_SOURCE_FILE = re.compile(
    r"(?<!/)(?:/+[^\s'\",:/]+){0,60}/+((?:site-packages|dist-packages|engine|cockpit|lib/python3\.\d+)/[\w./-]+\.py)"
)
_PATH = re.compile(r"(?:file://|~[\w.-]*|(?<![\w.\]<-])\.{0,2})/(?!/)(?:[^\s'\",:;()\[\]{}<>|`]+)")
_REST_OF_PATH = r"(?:/[^'\"`\n:,;()<>]{0,80}?\.[A-Za-z0-9]{1,8}(?![\w.])|/[^\s'\",:;()<>`]*)?"
"""What follows a known path in a text: a name of a file, with blanks or not, or whatever has none."""
_ADDRESS = re.compile(
    r"\b[\w.+-]{1,200}@[\w-]+(?:\.[\w-]+)*"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b"
    r"|(?<![\w:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}(?![\w:])|(?<![\w:])(?:[0-9a-f]{1,4}:){1,6}:[0-9a-f]{0,4}(?![\w:])",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"(?<!File )(?<![\w'\"`])(?:'[^'\n]{30,}'|\"[^\"\n]{30,}\"|“[^”\n]{30,}”|`[^`\n]{60,}`)(?!\w)")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_ESCAPE = re.compile(r"\\[abfnrtv'\"\\/]")
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_COMMON = frozenset(
    {"localhost", "user", "root", "home", "test", "tests", "data", "cockpit", "engine", "python", "train"}
)
"""Names that say nothing about anybody and occur in messages."""


def split_words(text: str) -> list[str]:
    """The words of a text, each CJK character for itself; escapes as in JSON or Python's `repr` are undone."""
    if "\\" in text:
        text = _UNICODE.sub(lambda found: chr(int(found[1], 16)), text)
        text = _ESCAPE.sub(" ", text)
    return _WORD.findall(text.casefold())


def list_grams(words: list[str], size: int = GRAM) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


class RowTexts:
    """Says which lines of some texts hold text of rows. The rows are streamed past it; it keeps none of them."""

    def __init__(self, texts: Iterable[str]) -> None:
        """`texts` are all that it will be asked about."""
        self._short: set[tuple[str, ...]] = set()
        self._asked: dict[tuple[str, ...], set[str]] = {}
        """The first words of what is asked about -> the last ones, which may be cut off."""
        for text in texts:
            words = split_words(text)
            for size in range(1, GRAM):
                self._short.update(list_grams(words, size))
            for *first, last in list_grams(words):
                self._asked.setdefault(tuple(first), set()).add(last)
        self._found: set[tuple[str, ...]] = set()
        self.complete = True
        """Whether all rows of the run were seen. If not, only lines of known shapes may be kept."""

    def see(self, value: Any) -> None:
        """Look at a row, or any part of one: every text in it, and every line of a text."""
        if isinstance(value, Mapping):
            for each in value.values():
                self.see(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                self.see(each)
        elif isinstance(value, str):
            for text in {value, *value.splitlines()}:
                self._see_text(text)

    def _see_text(self, text: str) -> None:
        words = split_words(text)
        if len(words) >= GRAM:
            for *first, last in list_grams(words):
                for cut in self._asked.get(tuple(first), ()):
                    if last.startswith(cut):
                        self._found.add((*first, cut))
            return
        shortest = SHORT_ROW if len(words) > 1 else 2 * SHORT_ROW
        if words and len("".join(words)) >= shortest and tuple(words) in self._short:
            self._found.add(tuple(words))

    def find_lines(self, lines: list[str]) -> set[int]:
        """The lines, by number, in which text of a row is, be it over several of them."""
        if not self._found:
            return set()
        words, places = [], []
        for number, line in enumerate(lines):
            found = split_words(line)
            words += found
            places += [number] * len(found)
        tainted: set[int] = set()
        for size in range(1, GRAM + 1):
            for start, gram in enumerate(list_grams(words, size)):
                if gram in self._found:
                    tainted.update(places[start : start + size])
        return tainted


class Redactor:
    """Takes out of texts what must not leave the machine. It counts what it has taken out, by kind."""

    def __init__(
        self,
        *,
        secrets: Iterable[str] = (),
        names: Iterable[str] = (),
        paths: Iterable[str] = (),
        rows: RowTexts | None = None,
        keep_paths: bool = False,
        keep_names: bool = False,
    ) -> None:
        """`rows` is None where their text may be kept. `names` are of users and hosts."""
        self.rows, self.keep_paths, self.keep_names = rows, keep_paths, keep_names
        self.counts: dict[str, int] = {}
        self._secrets = _alternatives(value for value in secrets if len(value) >= SHORTEST)
        self._paths = _alternatives((path for path in paths if len(path) > 1), after=_REST_OF_PATH)
        named = {name for name in names if len(name) > 1 and name.casefold() not in _COMMON}
        self._names = _alternatives(named, words=True)

    def clean(self, text: str) -> str:
        """The text, without whole lines that hold text of rows."""
        lines = text.split("\n")
        tainted = self.rows.find_lines(lines) if self.rows is not None else set()
        if tainted:
            self._count("rows", len(tainted))
            lines = ["[left out: text of a row]" if number in tainted else line for number, line in enumerate(lines)]
        text = self._replace(_SECRETS, "[secret]", "secrets", "\n".join(lines))
        return "\n".join(map(self._clean_line, text.split("\n")))

    def _clean_line(self, line: str) -> str:
        if self.rows is not None:
            line = self._replace(_QUOTED, "'[text]'", "rows", line)
        line = self._replace(self._secrets, "[secret]", "secrets", line)
        line = _NAMED_SECRET.sub(self._hide_value, line)
        if not self.keep_paths:
            line = self._replace(
                _SOURCE_FILE, lambda found: found[1].replace("dist-packages", "site-packages"), "", line
            )
            line = self._replace(_QUOTED_PATH, "'[path]'", "paths", line)
            line = self._replace(self._paths, "[path]", "paths", line)
            line = self._replace(_PATH, "[path]", "paths", line)
        if not self.keep_names:
            line = self._replace(_ADDRESS, "[address]", "names", line)
            line = self._replace(self._names, "[name]", "names", line)
        return line

    def _hide_value(self, found: re.Match[str]) -> str:
        value = found["value"] or found["credentials"]
        if value.strip("'\"").casefold() in PLAIN:
            return found[0]
        if len(value.strip("'\"")) < SHORTEST or value.strip("'\"").replace(".", "").isdecimal():
            return found[0]  # a number of tokens
        if value.startswith("["):
            return found[0]
        self._count("secrets")
        return f"{found['name'] or found['scheme']}[secret]"

    def _replace(self, pattern: re.Pattern[str] | None, by: Any, kind: str, text: str) -> str:
        if pattern is None:
            return text
        text, count = pattern.subn(by, text)
        if count and kind:
            self._count(kind, count)
        return text

    def _count(self, kind: str, count: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count


def _alternatives(texts: Iterable[str], words: bool = False, after: str = "") -> re.Pattern[str] | None:
    """A pattern for any of the texts, the longest first; None without any."""
    found = sorted({text for text in texts if text.strip()}, key=len, reverse=True)
    if not found:
        return None
    either = "|".join(map(re.escape, found))
    return re.compile(
        rf"(?<![^\W_])(?:{either})(?![^\W_])" if words else f"(?:{either}){after}", re.IGNORECASE if words else 0
    )


# ── what this machine is called ────────────────────────────────────────────────────────────────────────────────────


def list_secrets(environment: Mapping[str, str]) -> list[str]:
    """The values of an environment that are secrets by their names. Switches, short numbers and the current folder,
    which is in PWD, are none."""
    return [
        value
        for name, value in environment.items()
        if SECRET_NAME.search(name)
        and name not in ("PWD", "OLDPWD")
        and not name.startswith(("XDG_SESSION_", "DESKTOP_SESSION"))
        and value.casefold() not in PLAIN
        and not (value.isdecimal() and len(value) < 6)
    ]


def list_names(environment: Mapping[str, str], paths: Iterable[str] = ()) -> set[str]:
    """Names of the user and of the host, the owners of home directories in `paths` among them."""
    names = {environment.get(each, "") for each in ("USER", "LOGNAME", "SUDO_USER", "HOSTNAME", "USERNAME")}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError):
        pass
    names |= {socket.gethostname(), os.uname().nodename, Path.home().name}
    for path in paths:
        if found := re.match(r"/(?:home|Users|data/home|export/home|u|users)/([^/]+)", path):
            names.add(found[1])
    return {part for name in names for part in (name, name.partition(".")[0])} - {""}
