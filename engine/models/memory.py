"""Whether an exception says that there was not enough memory."""

from __future__ import annotations

import errno

_CPU = ("can't allocate memory", "Cannot allocate memory", "not enough memory")
"""What torch's CPU allocator says, in a plain RuntimeError that nothing else tells apart."""


def exhausted(error: BaseException) -> bool:
    """Whether an exception says that memory, a device's or the host's, was not enough."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU)
