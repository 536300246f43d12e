"""Can the data be prepared as the profile says? Looks at names, suffixes and sizes, never into files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.prep.formats import FORMATS
from engine.prep.rows import locate


def sources(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` for each source that is nowhere, of no known kind, or empty, for a template that is nowhere, and for packing."""
    data = sections.get("data")
    if data is None:
        return
    for part in ("train", "validation", "test"):
        for index, source in enumerate(getattr(data, part)):
            if source.format not in ("auto", *FORMATS):
                near = difflib.get_close_matches(source.format, FORMATS, n=1)
                hint = f", did you mean {near[0]}?" if near else ""
                yield (
                    f"data.{part}.{index}.format",
                    f"must be auto, {', '.join(FORMATS)}, not {source.format!r}{hint}",
                )
            try:
                if locate(source, directory).stat().st_size == 0:
                    yield f"data.{part}.{index}.source", f"{source.source} is empty"
            except (ValueError, OSError) as error:
                yield f"data.{part}.{index}.source", str(error)
    if data.packing:
        # Preparation packs; the training side pads its batches and would let packed rows see each other.
        yield "data.packing", "training does not keep packed rows apart yet: set it to false"
    if data.template != "auto" and not (directory / Path(data.template).expanduser()).is_file():
        yield (
            "data.template",
            f"there is no {data.template} beside the profile ({directory}); auto takes the model's own",
        )
