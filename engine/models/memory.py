"""Recognises exceptions which mean that memory ran out, on a device or on the host."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from engine.protocol.memory_errors import find_exhausted_memory

_SPEAKING = ("RuntimeError", "OSError", "SafetensorError")
"""Base classes whose text is read. A ValueError's text may quote somebody's data, so it is not."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or an exception that it was raised from, says that memory ran out."""
    return any(map(_says_so, _causes(error)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was raised `from`, each once."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__


def _says_so(error: BaseException) -> bool:
    """By class where there is one (torch's by name, so that torch need not be imported), else by text."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return not names.isdisjoint(_SPEAKING) and find_exhausted_memory(str(error)) != ""
