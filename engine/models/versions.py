"""Versions of Python and of the libraries that affect what a model computes."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "cockpit")


def list_versions() -> dict[str, str]:
    """Versions by name. Libraries that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found
