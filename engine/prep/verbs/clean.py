"""`cockpit data clean`: text repaired, rows dropped that are of no use. `--set clean.KEY=VALUE` switches rules, as in a profile's data section."""

from __future__ import annotations

import argparse
from typing import Any

from engine.options.data import CleanOptions
from engine.prep.stages.clean import clean
from engine.prep.stages.context import once
from engine.prep.stages.standalone import Progress, opened, options_of, out_of, publish
from engine.protocol.home import Home


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, kept, changed, rejected, rules, directory}`: `rows` = `kept` + `rejected`, `rules` how many rows each has changed or dropped.

    Rows that do not hold in their shape are rejected too, under the rule `invalid`; where a rule drops them, under its name. Raises ValueError.
    """
    options = options_of(CleanOptions, "clean", arguments.overrides)
    with opened(home, "clean", arguments, options.model_dump(), progress) as found:
        rows, rejects = found.context.folder / "cleaned", found.context.folder / "dropped"
        counts = once(found.context, "clean", lambda context: clean(found.rows, rows, rejects, options, context))
        report = {
            "rows": found.counts["read"],
            "kept": counts["out"],
            "changed": counts["changed"],
            "rejected": found.counts["rejected"] + counts["rejected"],
            "rules": _rules(found.counts, counts["rules"]),
        }
        return publish(out_of(arguments), {"rows.jsonl": rows}, [found.rejects, rejects], report)


def _rules(checked: dict[str, Any], rules: dict[str, int]) -> dict[str, int]:
    """A row without a reply does not hold in its shape, and is what `empty` is asked for."""
    without = checked["empty"] if "empty" in rules else 0
    return {"invalid": checked["rejected"] - without, **rules} | (
        {"empty": rules["empty"] + without} if without else {}
    )
