"""`cockpit data balance`: the same number of rows for each value of a column."""

from __future__ import annotations

import argparse
from typing import Any

from engine.options.data import BalanceOptions
from engine.prep.stages.balance import balance
from engine.prep.stages.context import run_once
from engine.prep.stages.standalone import Progress, open_rows, output_folder, parse_options, publish
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, kept, repeated, rejected, groups, directory}`: `kept` rows were written, `repeated` of them are
    repetitions, `groups` maps a value to [before, after].

    Raises ValueError if no row has the column.
    """
    to = int(arguments.to) if arguments.to.isdecimal() else arguments.to
    options = parse_options(BalanceOptions, "balance", (), by=arguments.by, to=to, seed=arguments.seed)
    with open_rows(home, "balance", arguments, options.model_dump(), progress) as found:
        rows = found.context.folder / "balanced"
        counts = run_once(found.context, "balance", lambda context: balance(found.rows, rows, options, context))
        report = {
            **found.left_out,
            "rows": found.counts["read"],
            "kept": counts["out"],
            "repeated": counts["repeated"],
            "rejected": found.counts["rejected"],
            "groups": counts["groups"],
        }
        return publish(output_folder(arguments), {"rows.jsonl": rows}, [found.rejects], report)
