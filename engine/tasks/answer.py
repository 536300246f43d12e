"""A reply with everything that metrics may need to know about it."""

from __future__ import annotations

from typing import NamedTuple


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
