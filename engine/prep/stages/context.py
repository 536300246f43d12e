"""The context in which a stage works, and the record that lets it run only once."""

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
    """`folder` keeps the finished work of a killed process; its creator removes it when the results are safe."""

    folder: Path
    processes: int
    progress: Callable[[str, int, int], object]
    """Called with (phase, done, total)."""
    files: tuple[str, ...] = ()
    """The paths of the source files, indexed by the file number of a placed row."""
    formats: tuple[str | None, ...] = ()
    """The format of each file, if rows are unchanged source rows; empty if all rows are canonical."""

    def within(self, name: str) -> Context:
        """The same context with a subfolder."""
        return replace(self, folder=self.folder / name)

    def settings(self, **more: Any) -> dict[str, Any]:
        """The settings for a stage's worker processes."""
        return {"files": list(self.files), "formats": list(self.formats), **more}

    def work_through(self, paths: Iterable[Path], work: str, settings: dict[str, Any], phase: str) -> Any:
        """`chunks.work_through` over all spans of these files, in this folder."""
        spans = [span for path in paths for span in chunks.cut(path)]
        return chunks.work_through(
            spans, work, settings, self.folder, self.processes, lambda done, total: self.progress(phase, done, total)
        )


def run_once(context: Context, name: str, make: Callable[[Context], dict[str, Any]]) -> dict[str, Any]:
    """Call `make` and return its counts, or the recorded counts if an earlier process has completed it in this folder.

    `make` gets a context with the subfolder `name`, which is removed afterwards; it must have written its results to
    disk elsewhere when it returns.
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
    """One process for each core that this process may use."""
    return len(os.sched_getaffinity(0))
