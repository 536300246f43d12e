"""Do the named sources exist? Looks at names and paths, never into files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.prep.sources import find_source


def sources(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` for each source that is nowhere."""
    data = sections.get("data")
    for part in ("train", "validation", "test") if data else ():
        for index, entry in enumerate(getattr(data, part)):
            try:
                find_source(entry.source, directory)
            except ValueError as error:
                yield f"data.{part}.{index}.source", str(error)
