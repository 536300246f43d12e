"""`cockpit data balance`: as many rows for each value of a column."""

from __future__ import annotations

import argparse
from typing import Any

from engine.options.data import BalanceOptions
from engine.prep.stages.balance import balance
from engine.prep.stages.context import once
from engine.prep.stages.standalone import Progress, opened, options_of, out_of, publish
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, kept, repeated, rejected, groups, directory}`: `kept` rows written, `repeated` of them a second time or more, `groups` value -> [before, after].

    Raises ValueError: no row has the column.
    """
    to = int(arguments.to) if arguments.to.isdecimal() else arguments.to
    options = options_of(BalanceOptions, "balance", (), by=arguments.by, to=to, seed=arguments.seed)
    with opened(home, "balance", arguments, options.model_dump(), progress) as found:
        rows = found.context.folder / "balanced"
        counts = once(found.context, "balance", lambda context: balance(found.rows, rows, options, context))
        report = {
            "rows": found.counts["read"],
            "kept": counts["out"],
            "repeated": counts["repeated"],
            "rejected": found.counts["rejected"],
            "groups": counts["groups"],
        }
        return publish(out_of(arguments), {"rows.jsonl": rows}, [found.rejects], report)
