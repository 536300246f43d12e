"""A reply with everything that metrics may need to know about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.tasks.thoughts import MARKS, Marks, drop_thoughts


class Answer(NamedTuple):
    """A field is None where it was not measured: of replies generated elsewhere only the text is known."""

    reply: str
    reference: str | None = None
    tokens: int | None = None
    """Length of the reply, its stop token included."""
    stopped: bool | None = None
    """Whether the reply ended with a stop token, rather than at the longest length."""
    seconds: float | None = None
    """From the request to the last token, generated in a batch with other replies."""
    marks: Sequence[Marks] = MARKS
    """The marks around thinking in the texts."""

    def without_thinking(self) -> Answer:
        """The same without the thinking of reply and reference, which is not scored."""
        reference = None if self.reference is None else drop_thoughts(self.reference, self.marks)
        return self._replace(reply=drop_thoughts(self.reply, self.marks), reference=reference)
