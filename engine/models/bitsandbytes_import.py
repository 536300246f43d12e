"""Imports bitsandbytes without torch's compiler.

peft imports bitsandbytes whenever it is there, and bitsandbytes hands four functions to `torch.compile` when it is
imported, which imports torch's whole compiler: two seconds of every worker that has an adapter, for functions that few
runs call. Imported here, each is handed over when it is called for the first time.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def import_lightly() -> None:
    """Import bitsandbytes, unless it is imported already or not installed."""
    if "bitsandbytes" in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return
    import torch

    compile_now: Any = torch.compile
    torch.compile = functools.partial(_compile_when_called, compile_now)
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now


def _compile_when_called(
    compile_now: Callable[..., Any], function: Callable[..., Any] | None = None, /, **options: Any
) -> Any:
    """What `torch.compile(function, **options)` returns, made at its first call."""
    if function is None:
        return functools.partial(_compile_when_called, compile_now, **options)
    made: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not made:
            made.append(compile_now(function, **options))
        return made[0](*arguments, **named)

    return call
