"""`cockpit explain`: what is behind a code."""

from __future__ import annotations

import argparse
import sys
import textwrap

from cockpit.language.translate import tr
from cockpit.verbs.output import PIPE_WIDTH, console, emit, table
from engine.protocol.codes import CODES
from engine.protocol.explanations import Explanation, find_similar, read_explanations
from engine.protocol.messages import Problem, ProblemError

WIDEST = 100
"""Columns of a paragraph."""


def explain(options: argparse.Namespace) -> int:
    found = read_explanations()
    if options.code is None:
        return _list(options.json)
    explanation = found.get(options.code.strip("`'\" "))
    if explanation is None:
        raise _unknown_error(options.code)
    if options.json:
        emit(explanation._asdict())
    else:
        _print(explanation)
    return 0


def _list(as_json: bool) -> int:
    if as_json:
        emit([{"code": code, "meaning": meaning} for code, meaning in sorted(CODES.items())])
    else:
        table(("CODE", "WHAT"), sorted(CODES.items()))
    return 0


def _print(explanation: Explanation) -> None:
    width = min(WIDEST, console().width if sys.stdout.isatty() else PIPE_WIDTH)
    print(explanation.code)
    for title, text in (("", explanation.meaning), (tr("How it comes about"), explanation.how)):
        print()
        _print_paragraph(title, text, width)
    print()
    _print_paragraph(tr("What mends it"), explanation.mend, width)


def _print_paragraph(title: str, text: str, width: int) -> None:
    if title:
        print(f"{title}:")
    print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False))


def _unknown_error(word: str) -> ProblemError:
    similar = find_similar(word)
    return ProblemError(
        Problem(
            code="request.invalid",
            title=tr("There is no code {word!r}", word=word),
            cause=tr("did you mean {codes}?", codes=" or ".join(f"`{code}`" for code in similar)) if similar else "",
            hint=f"cockpit explain {similar[0]}" if similar else tr("`cockpit explain` lists all codes"),
        )
    )
