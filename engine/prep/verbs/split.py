"""`cockpit data split`: holds out rows for validation and test; similar rows stay in the same part."""

from __future__ import annotations

import argparse
from typing import Any

from engine.options.data import DedupOptions, SplitOptions
from engine.prep.stages.context import run_once
from engine.prep.stages.split import PARTS, split
from engine.prep.stages.standalone import Progress, open_rows, output_folder, parse_options, publish
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, train, validation, test, rejected[, cut][, strata], directory}`: `rows` = `train` + `validation` +
    `test` + `rejected`; `cut` rows were held out though similar ones are in another part.

    Raises ValueError.
    """
    options = parse_options(
        SplitOptions,
        "split",
        (),
        validation=arguments.validation,
        test=arguments.test,
        stratify_by=arguments.stratify_by,
        seed=arguments.seed,
    )
    with open_rows(home, "split", arguments, options.model_dump(), progress) as found:
        out = {part: found.context.folder / part for part in PARTS}
        counts = run_once(
            found.context, "split", lambda context: split(found.rows, out, options, DedupOptions(), context)
        )
        report = {
            **found.left_out,
            "rows": found.counts["read"],
            **{part: counts[part] for part in PARTS},
            "rejected": found.counts["rejected"],
            **({"cut": counts["cut"]} if counts["cut"] else {}),
            **({"strata": counts["strata"]} if options.stratify_by else {}),
        }
        return publish(
            output_folder(arguments), {f"{part}.jsonl": path for part, path in out.items()}, [found.rejects], report
        )
