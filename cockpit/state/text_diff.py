"""Differences between two texts, word by word. Pure."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence

from cockpit.content import Content
from cockpit.language.translate import tr
from engine.protocol.terminal import show_controls

NEW = "bold underline $success"
"""Style of a new word."""
_HAN = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+|[^\w\s]")
"""In scripts without blanks between words, each character counts as a word."""
_LINES = re.compile(r"\S(?:[^\n]*\S)?")


def are_similar(texts: Sequence[str]) -> bool:
    """Whether marking differences is useful: each text shares at least half of the longer one's words with the first
    text."""
    first, *others = [Counter(match[0] for match in _WORDS.finditer(text)) for text in texts]
    return all((first & other).total() * 2 >= max(first.total(), other.total()) for other in others)


def mark_new_words(before: str, now: str) -> tuple[Content, str]:
    """The text `now` with its new words marked, and how many words are new and gone. Blanks are not compared."""
    now = show_controls(now)
    old = [match[0] for match in _WORDS.finditer(before)]
    new = list(_WORDS.finditer(now))
    marked = Content(now)
    added = gone = 0
    matcher = difflib.SequenceMatcher(None, old, [match[0] for match in new], autojunk=False)
    for what, old_start, old_stop, start, stop in matcher.get_opcodes():
        if what == "equal":
            continue
        gone += sum(word[0].isalnum() for word in old[old_start:old_stop])
        added += sum(match[0][0].isalnum() for match in new[start:stop])
        # Blanks between two new words are marked with them; those at the start of a line are not.
        for line in _LINES.finditer(now, new[start].start(), new[stop - 1].end()) if stop > start else ():
            marked = marked.stylize(NEW, *line.span())
    return marked, tr("{added} word{plural} new, {gone} gone", added=added, plural="s"[: added != 1], gone=gone)
