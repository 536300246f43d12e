"""Errors as data, which cross from one process to another."""

from __future__ import annotations

import msgspec

from engine.protocol.codes import UNKNOWN


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error as data: what happened (`title`), why (`cause`), and what to do (`hint`)."""

    code: str = UNKNOWN
    """One of `codes.CODES`, which programs compare. The default is for peers of an older version: every `Problem` that
    is made here names its own."""
    title: str
    cause: str = ""
    hint: str = ""
    place: str = ""
    """The file, line and column that it is about, where there is such a place."""
    traceback: str = ""

    def __str__(self) -> str:
        return "\n".join(part for part in (self.title, self.cause, self.hint and f"→ {self.hint}") if part)

    def document(self) -> dict[str, str]:
        """The object under `error` in the output of `--json`."""
        return {"code": self.code, "title": self.title, "cause": self.cause, "hint": self.hint, "place": self.place}


class ProblemError(Exception):
    """The exception that carries a `Problem` through Python code."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem
