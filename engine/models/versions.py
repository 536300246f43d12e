"""Versions of Python and of the libraries that affect what a model computes."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "cockpit")


def list_versions() -> dict[str, str]:
    """Versions by name. Libraries that are not installed are left out."""
    return {"python": platform.python_version()} | {name: found for name in PACKAGES if (found := _find_version(name))}


@functools.cache
def _find_version(name: str) -> str:
    """The version that was installed at the first call: what this process has loaded. Each checkpoint asks for it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
