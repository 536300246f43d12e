"""Short texts about errors: the first lines of an exception, and a suggestion for a misspelt word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """The first line of the exception's text, or its class name when it has no text."""
    return first_lines(error, 1)


def first_lines(error: BaseException, count: int = 3) -> str:
    """The first `count` lines of the exception's text, or its class name when it has no text.

    Libraries that load models put the summary on the first line and the reason on the next ones.
    """
    return "\n".join(str(error).strip().splitlines()[:count]) or type(error).__name__


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`, did you mean …?` with the choice closest to `word`, or an empty string when none is close. Appended to a
    message."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f", did you mean {matches[0]}?" if matches else ""


def name_after(stem: str) -> str:
    """A name for a run on a file of this name: `My rows.jsonl` becomes `my-rows`."""
    return re.sub(r"[^A-Za-z0-9]+", "-", stem.partition(".")[0]).strip("-").lower()[:60] or "mine"


def name_kind(value: object) -> str:
    """What kind of value this is, as one would say it of JSON: text, a number, a list, an object, true, false, null."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds: tuple[tuple[type, str], ...] = ((str, "text"), (int, "a number"), (float, "a number"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")
