"""The text that a template writes around the contents of a conversation, learnt once for each sequence of roles.

Most conversations are rendered only once: one whose text equals the skeleton of its roles, filled with its own
contents, has the skeleton's spans too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.prep.formats.canonical import Message
from engine.prep.rendered import RenderedRow


class Skeleton(NamedTuple):
    """The template's own text around the contents of one sequence: `literals` has one item more than there are
    contents.

    A position in the text is (number of contents before it, characters behind the last of them).
    """

    literals: list[str]
    spans: list[tuple[tuple[int, int], tuple[int, int]]]
    ends: list[tuple[int, int]]
    appended: str
    """Text at the end that the template does not write."""

    @classmethod
    def cut(cls, rendered: RenderedRow, marks: Sequence[str], appended: str) -> Skeleton | None:
        """The skeleton of a sequence whose contents are `marks`; None unless each occurs exactly once, in order."""
        literals, behind, at = [], [0], 0
        for mark in marks:
            found = rendered.text.find(mark, at)
            if found < 0 or rendered.text.count(mark) != 1:
                return None
            literals.append(rendered.text[at:found])
            at = found + len(mark)
            behind.append(at)
        literals.append(rendered.text[at:])

        def place(position: int) -> tuple[int, int]:
            contents = max(number for number, end in enumerate(behind) if end <= position)
            return contents, position - behind[contents]

        spans = [(place(start), place(end)) for start, end in rendered.spans]
        return cls(literals, spans, [place(end) for end in rendered.ends], appended)

    def fit(self, text: str, messages: Sequence[Message]) -> RenderedRow | None:
        """The sequence of a conversation with the same roles, which the template renders as `text`; None if that is
        not the skeleton filled with its contents."""
        parts, behind, at = [self.literals[0]], [0], len(self.literals[0])
        for message, literal in zip(messages, self.literals[1:], strict=True):
            at += len(message["content"])
            behind.append(at)
            at += len(literal)
            parts += (message["content"], literal)
        whole = text + self.appended
        if "".join(parts) != whole:
            return None
        spans = [(behind[first] + start, behind[last] + end) for (first, start), (last, end) in self.spans]
        return RenderedRow(whole, spans, [behind[number] + end for number, end in self.ends], special=False)
