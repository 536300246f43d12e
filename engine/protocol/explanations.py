"""What is behind each code: how it comes about, and what mends it. The texts are in `explanations.md` beside this.

python -m engine.protocol.explanations > docs/codes.md
"""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

from engine.protocol.codes import CODES

_TEXTS = Path(__file__).with_name("explanations.md")
_SIMILAR = 0.6
"""How much of a code a mistyped one must have in common with it, from 0 to 1."""


class Explanation(NamedTuple):
    """A code's page section. Every text is one paragraph."""

    code: str
    meaning: str
    how: str
    mend: str


@cache
def read_explanations() -> dict[str, Explanation]:
    """All explanations by code, in the order of the file. Raises ValueError for a section that is not of two
    paragraphs, or of no code."""
    found = {}
    for section in re.split(r"^## ", _TEXTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        code, _, body = section.partition("\n")
        paragraphs = [" ".join(paragraph.split()) for paragraph in body.strip().split("\n\n")]
        if len(paragraphs) != 2 or code not in CODES:
            raise ValueError(f"{_TEXTS.name}: {code} has {len(paragraphs)} paragraphs, or is no code")
        found[code] = Explanation(code, CODES[code], *paragraphs)
    return found


def find_similar(word: str, most: int = 3) -> list[str]:
    """The codes that a mistyped one may mean, the likeliest first: those that contain it, then those spelt alike."""
    word = word.strip().lower().replace("-", "_").replace(" ", ".")
    within = [code for code in CODES if word and (word in code or word in code.replace(".", "_"))]
    alike = difflib.get_close_matches(word, CODES, most, _SIMILAR)
    last = {code.rpartition(".")[2]: code for code in CODES}
    alike += [last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], last, most, 0.8)]
    return list(dict.fromkeys([*within, *alike]))[:most]


def page() -> str:
    """`docs/codes.md`."""
    head = """\
# Codes

Every problem, warning, pause and mark has a code. Scripts compare the code, in `--json` output and
in journals; the words beside it are for people, and may change. An error under `--json` is
`{"error": {"code", "title", "cause", "hint", "place"}}`. A code that an older version did not send
is `unknown`. `cockpit explain CODE` prints a section of this page.

This page is generated: `python -m engine.protocol.explanations > docs/codes.md`.
"""
    parts = [head]
    family = ""
    for code, explanation in sorted(read_explanations().items()):
        if (first := code.partition(".")[0]) != family:
            family = first
            parts.append(f"\n## {family}\n")
        how, mend = f"*How it comes about:* {explanation.how}", f"*What mends it:* {explanation.mend}"
        paragraphs = (
            textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
            for text in (explanation.meaning, how, mend)
        )
        parts.append("\n\n".join([f"\n### {code}", *paragraphs]) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
