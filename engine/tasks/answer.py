"""A reply with all that metrics may ask about it."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """None is what nobody measured: of replies from elsewhere only the text is known."""

    reply: str
    reference: str | None = None
    tokens: int | None = None
    """Of the reply, its stop token included."""
    stopped: bool | None = None
    """It ended by itself, and not because it had become too long."""
    seconds: float | None = None
    """From asking to its last token, beside the replies that were generated with it."""
