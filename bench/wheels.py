"""Prints the wheels of a folder whose packages this Python lacks, a line each: `python -m bench.wheels FOLDER`.

Of several wheels of a package the last by name is taken.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path


def list_missing(folder: Path) -> list[Path]:
    installed = {_normalise(each.metadata["Name"] or "") for each in importlib.metadata.distributions()}
    wheels = {_normalise(wheel.name.partition("-")[0]): wheel for wheel in sorted(folder.glob("*.whl"))}
    return [wheel for name, wheel in wheels.items() if name not in installed]


def _normalise(name: str) -> str:
    """As PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    for wheel in list_missing(Path(sys.argv[1])):
        print(wheel.resolve())
