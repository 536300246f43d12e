"""`cockpit data clean`: repairs text and drops useless rows. `--set clean.KEY=VALUE` sets rules, as in a profile's data
section."""

from __future__ import annotations

import argparse
from typing import Any

from engine.options.data import CleanOptions
from engine.prep.stages.clean import clean
from engine.prep.stages.context import run_once
from engine.prep.stages.standalone import Progress, open_rows, output_folder, parse_options, publish
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, kept, changed, rejected, rules, directory}`: `rows` = `kept` + `rejected`; `rules` has the rows that each
    rule changed or dropped.

    Rows that are invalid in their format are rejected too, under the rule `invalid`, or `empty` if that is why. Raises
    ValueError.
    """
    options = parse_options(CleanOptions, "clean", arguments.overrides)
    with open_rows(home, "clean", arguments, options.model_dump(), progress) as found:
        rows, rejects = found.context.folder / "cleaned", found.context.folder / "dropped"
        counts = run_once(found.context, "clean", lambda context: clean(found.rows, rows, rejects, options, context))
        report = {
            **found.left_out,
            "rows": found.counts["read"],
            "kept": counts["out"],
            "changed": counts["changed"],
            "rejected": found.counts["rejected"] + counts["rejected"],
            "rules": _add_invalid(found.counts, counts["rules"]),
        }
        return publish(output_folder(arguments), {"rows.jsonl": rows}, [found.rejects, rejects], report)


def _add_invalid(checked: dict[str, Any], rules: dict[str, int]) -> dict[str, int]:
    """The counts by rule. A row without a reply is invalid in its format, and counts for the rule `empty` if that is
    enabled."""
    without = checked["empty"] if "empty" in rules else 0
    return {"invalid": checked["rejected"] - without, **rules} | (
        {"empty": rules["empty"] + without} if without else {}
    )
