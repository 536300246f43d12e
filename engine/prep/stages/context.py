"""What every stage works with, and what makes a stage happen once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.prep import chunks
from engine.protocol.home import write_private


@dataclass(frozen=True)
class Context:
    """`folder` keeps work that a killed process has done; whoever made it removes it when the results are safe."""

    folder: Path
    processes: int
    progress: Callable[[str, int, int], object]
    """Told (phase, done, total)."""
    files: tuple[str, ...] = ()
    """The sources' paths: what the file number of a placed row means."""
    formats: tuple[str | None, ...] = ()
    """Each file's format, for rows that stand as they stood; empty when all rows are canonical."""

    def within(self, name: str) -> Context:
        """The same in a folder of its own."""
        return replace(self, folder=self.folder / name)

    def settings(self, **more: Any) -> dict[str, Any]:
        """What a stage's workers are told."""
        return {"files": list(self.files), "formats": list(self.formats), **more}

    def work_through(self, paths: Iterable[Path], work: str, settings: dict[str, Any], phase: str) -> Any:
        """`chunks.work_through` over these files, one after the other, in this folder."""
        spans = [span for path in paths for span in chunks.cut(path)]
        return chunks.work_through(
            spans, work, settings, self.folder, self.processes, lambda done, total: self.progress(phase, done, total)
        )


def run_once(context: Context, name: str, make: Callable[[Context], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns; it is not called when an earlier process has done it in this folder. Its pieces are removed.

    `make` must have its results on the disk, outside of the folder `name` that it works in, when it returns.
    """
    marker = context.folder / f"{name}.json"
    if not marker.is_file():
        inner = context.within(name)
        inner.folder.mkdir(parents=True, exist_ok=True)
        counts = make(inner)
        write_private(marker, json.dumps(counts, ensure_ascii=False).encode())
    shutil.rmtree(context.folder / name, ignore_errors=True)
    made: dict[str, Any] = json.loads(marker.read_bytes())
    return made


def default_processes() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0))
