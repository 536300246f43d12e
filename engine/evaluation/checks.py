"""Checks of the `evaluation` section against what is installed and on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INSTALL = "pip install 'cockpit[benchmarks]', or pip install lm_eval"


def has_harness() -> bool:
    """Whether lm-evaluation-harness is installed."""
    return importlib.util.find_spec("lm_eval") is not None


def check_benchmarks(sections: Mapping[str, Any], directory: Path, home: Any) -> Iterator[tuple[str, str]]:
    """Yield `(key, message)` for each mistake in `evaluation.benchmarks`."""
    evaluation = sections.get("evaluation")
    options = evaluation.benchmarks if evaluation else None
    if options is None:
        return
    if not has_harness():
        yield "evaluation.benchmarks", f"needs the package lm_eval, which is not installed: {INSTALL}"
    if options.folder and not (folder := directory / Path(options.folder).expanduser()).is_dir():
        yield "evaluation.benchmarks.folder", f"there is no folder {folder}"
