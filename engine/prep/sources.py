"""Finding what a source names. CONTRACT's order: a path that exists, a path in the bundled data/, a catalogue name."""

from __future__ import annotations

import difflib
from pathlib import Path

from engine.protocol.bundled import bundled

HUB = "hf://"


def find_source(source: str, directory: Path) -> Path | str:
    """The file or folder that `source` names, absolute; a hub source (`hf://org/name`) is returned as it is.

    Raises ValueError, with near misses, when there is nothing of that name.
    """
    if source.startswith(HUB):
        return source
    for folder in (directory, bundled("data")):
        path = (folder / Path(source).expanduser()).resolve()
        if path.exists():
            return path
    samples = [str(path.relative_to(bundled("data"))) for path in sorted(bundled("data").rglob("*.jsonl"))]
    near = difflib.get_close_matches(source, samples, n=1, cutoff=0.6)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no {source} beside the profile ({directory}) nor among the bundled samples{hint}")
