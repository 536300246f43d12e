"""`{"prompt": "…", "completion": "…"}`: one exchange, also under the names `question` and `response` or `answer`."""

from __future__ import annotations

from typing import Any

from engine.prep.formats.canonical import Canonical, question_answer

_QUESTION = ("prompt", "question")
_ANSWER = ("completion", "response", "answer")


def matches(row: dict[str, Any]) -> bool:
    return _first(row, _QUESTION) is not None and _first(row, _ANSWER) is not None


def convert(row: dict[str, Any]) -> Canonical:
    return question_answer(row.get("system"), _first(row, _QUESTION), _first(row, _ANSWER))


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
