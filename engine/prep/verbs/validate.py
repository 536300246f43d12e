"""`cockpit data validate`: lists the bad rows of a file, a folder or a glob, with file, line, byte offset and
reason."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from engine.prep.stages.standalone import CheckedRows, Progress, open_rows, output_folder, publish
from engine.protocol.home import Home
from engine.storage import cache


def run(home: Home, arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """`{rows, good, rejected, reasons, unused_columns, rejects[, left_out]}`: `rows` = `good` + `rejected`; `reasons`
    by class; `unused_columns` with the number of rows that have them; `rejects` is the file of the bad rows;
    `left_out` are files of other splits.

    With `--out` that file is in the given folder, beside rows.jsonl (the good rows) and report.json, else in the home's
    cache. Raises ValueError.
    """
    with open_rows(home, "validate", arguments, {}, progress) as found:
        report = {
            "rows": found.counts["read"],
            "good": found.counts["good"],
            "rejected": found.counts["rejected"],
            "reasons": found.counts["reasons"],
            "unused_columns": found.counts["unused_columns"],
            **found.left_out,
        }
        if arguments.out is None:
            return {**report, "rejects": str(_cache_rejects(home, found))}
        out = output_folder(arguments)
        publish(out, {"rows.jsonl": found.rows}, [found.rejects], report)
        return {**report, "rejects": str(out / "rejects.jsonl"), "directory": str(out)}


def _cache_rejects(home: Home, found: CheckedRows) -> Path:
    """Keep the rejects in the cache, under a hash of their content; returns the file."""
    name = "rejects-" + cache.entry_key({"rejects": found.rejects}, {}, lambda _: None)
    if not (home.cache / name).is_dir():
        with cache.new_entry(home, name) as folder:
            shutil.copyfile(found.rejects, folder / "rejects.jsonl")
            (folder / "report.json").write_text(json.dumps(found.counts, ensure_ascii=False), encoding="utf-8")
    return home.cache / name / "rejects.jsonl"
