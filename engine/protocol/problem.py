"""Errors as data, which cross from one process to another."""

from __future__ import annotations

import msgspec


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error as data: what happened (`title`), why (`cause`), and what to do (`hint`)."""

    title: str
    cause: str = ""
    hint: str = ""
    traceback: str = ""

    def __str__(self) -> str:
        return "\n".join(part for part in (self.title, self.cause, self.hint and f"→ {self.hint}") if part)


class ProblemError(Exception):
    """The exception that carries a `Problem` through Python code."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem
