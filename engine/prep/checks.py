"""Can the data be prepared as the profile says? Looks at names, suffixes and sizes, never into files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.prep.formats import FORMATS
from engine.prep.sources import HUB, files
from engine.prep.stages.located import PARTS, resolved


def sources(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """`(key, message)` for each source that is nowhere, of no known kind, or empty, for a template that is nowhere,
    and for what cannot go together."""
    data = sections.get("data")
    if data is None:
        return
    for part in PARTS:
        for index, source in enumerate(getattr(data, part)):
            if source.format not in ("auto", *FORMATS):
                near = difflib.get_close_matches(source.format, FORMATS, n=1)
                hint = f", did you mean {near[0]}?" if near else ""
                yield (
                    f"data.{part}.{index}.format",
                    f"must be auto, {', '.join(FORMATS)}, not {source.format!r}{hint}",
                )
            if part != "train" and source.weight != 1:
                yield f"data.{part}.{index}.weight", "is for training rows: held-out rows are seen once"
            try:
                found = resolved(source, data, directory)
                if not found.source.startswith(HUB) and not any(
                    path.stat().st_size for path in files(found.source, directory)
                ):
                    yield f"data.{part}.{index}.source", f"{source.source} is empty"
            except (ValueError, OSError) as error:
                yield f"data.{part}.{index}.source", str(error)
    if data.catalog and not (directory / Path(data.catalog).expanduser()).is_file():
        yield "data.catalog", f"there is no {data.catalog} beside the profile ({directory})"
    if data.split:
        yield from _split(data)
    if data.expand:
        # It is a verb: its answers are looked through before anything is trained on them.
        yield (
            "data.expand",
            "is no stage of a run: make the rows with `cockpit data expand`, then name them in data.train",
        )
    if data.template != "auto" and not (directory / Path(data.template).expanduser()).is_file():
        yield (
            "data.template",
            f"there is no {data.template} beside the profile ({directory}); auto takes the model's own",
        )


def _split(data: Any) -> Iterator[tuple[str, str]]:
    for part in ("validation", "test"):
        if getattr(data, part) and getattr(data.split, part):
            yield f"data.split.{part}", f"there is data.{part} already: leave one of them out"
    if not data.split.validation and not data.split.test:
        yield "data.split", "holds nothing out: say validation or test, a share of the rows"
    if data.split.validation + data.split.test >= 1:
        yield "data.split", "leaves nothing to train on: validation and test together must be below 1"
