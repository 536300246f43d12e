"""Finds the bundled profiles and data: beside the packages in a checkout, inside `engine` in a wheel."""

from __future__ import annotations

from pathlib import Path

import engine


def find_bundled(kind: str) -> Path:
    """The folder of bundled `profiles` or `data`. An assertion fails when the installation lacks it."""
    package = Path(engine.__file__).parent
    for folder in (package / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise AssertionError(f"this installation has no {kind}/ folder")
