"""`cockpit data dedup`: drops duplicate rows, similar rows, and rows of held-out files. `--set dedup.KEY=VALUE` as in a
profile."""

from __future__ import annotations

import argparse
from typing import Any

from engine.options.data import DedupOptions
from engine.prep.stages.context import run_once
from engine.prep.stages.dedup import dedup
from engine.prep.stages.standalone import Progress, open_rows, output_folder, parse_options, publish
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, kept, exact, near, held_out, rejected, directory}`: `rows` = `kept` + `exact` + `near` + `rejected`.

    `rejected` rows are invalid in their format; `held_out` of the duplicates are in the files of `--against`. Raises
    ValueError.
    """
    options = parse_options(DedupOptions, "dedup", arguments.overrides)
    settings = {**options.model_dump(), "against": len(arguments.against)}
    with open_rows(home, "dedup", arguments, settings, progress, arguments.against) as found:
        rows, rejects = found.context.folder / "kept", found.context.folder / "dropped"
        counts = run_once(
            found.context,
            "dedup",
            lambda context: dedup(found.rows, rows, rejects, options, context, found.others),
        )
        report = {
            **found.left_out,
            "rows": found.counts["read"],
            "kept": counts["out"],
            "exact": counts["exact"],
            "near": counts["near"],
            "held_out": counts["held_out"],
            "rejected": found.counts["rejected"],
        }
        return publish(output_folder(arguments), {"rows.jsonl": rows}, [found.rejects, rejects], report)
