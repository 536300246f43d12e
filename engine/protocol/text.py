"""Short texts about errors: the first lines of an exception, and a suggestion for a misspelt word."""

from __future__ import annotations

import difflib
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
