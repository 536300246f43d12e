"""Verbs that help when something is wrong, or unclear."""

from __future__ import annotations

from cockpit.command_line.options import Verb, option

HELP_VERBS = (
    Verb(
        "explain",
        "say what an error or a warning means, how it comes about, and what mends it",
        "explain:explain",
        (option("code", nargs="?", metavar="CODE", help="a code, e.g. memory.exhausted; without one, list them all"),),
    ),
)
