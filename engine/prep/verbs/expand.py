"""`cockpit data expand`: new rows from an OpenAI-compatible service. `--set expand.KEY=VALUE` as in a profile's data
section."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.options.data import ExpandOptions
from engine.prep import read_rows
from engine.prep.expand.expand import dry_run, expand
from engine.prep.stages.standalone import parse_options, parse_source
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """The result of `expand`, or with `--dry-run` of `dry_run`. Raises ValueError, ProblemError."""
    options = parse_options(ExpandOptions, "expand", arguments.overrides, as_text=("prompts",))
    source = parse_source(arguments)
    paths = read_rows.locate(source, Path.cwd(), home)
    if arguments.dry_run:
        return dry_run(paths, source, options, progress)
    return expand(paths, source, options, Path(arguments.out).expanduser().absolute(), progress)
