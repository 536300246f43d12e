"""Speed and memory of preparing a generated JSONL of chats: rows a second of each stage, peak memory, cost for each
row.

Every stage runs in a fresh interpreter, which imports its libraries first and reports it. Peak memory is the sum of the
resident set sizes of that process and all its children, minus what each of them has after importing. (Mapped files
count as resident while they are mapped; what processes share counts in each.) The cost for each row is in CPU seconds
of all processes, imports included, over three decades of rows. The line is fitted by least squares with equal weights:
seconds = fixed + per_row × rows.

    python -m bench.prep [--size 2e9] [--processes 2] [--decades 3]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.report import save

STAGES = ("validate", "clean", "dedup", "tokenize")
_EVERY = 0.05
"""Seconds between two looks at memory."""
_REPEATED = 0.1
"""Share of rows that are an earlier row again; half of these with a few characters changed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=2e9, help="bytes of the file (2e9)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, default=Path.home() / ".cockpit/models/smollm2-135m-instruct")
    parser.add_argument("--decades", type=int, default=3, help="decades of rows over which cost per row is told (3)")
    parser.add_argument("--folder", type=Path, help="where the file is made (a temporary folder)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        _work(arguments)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="prep-") as folder:
        source = Path(folder, "rows.jsonl")
        rows = generate(source, int(arguments.size))
        measured = _all(source, rows, Path(folder, "work"), arguments)
        points = [(rows, measured)]
        for decade in range(1, arguments.decades + 1):
            part = Path(folder, f"part-{decade}.jsonl")
            some = _first(source, part, rows // 10**decade)
            points.append((some, _all(part, some, Path(folder, f"work-{decade}"), arguments)))
    save(
        "prep",
        {
            "bytes": int(arguments.size),
            "rows": rows,
            "processes": arguments.processes,
            "stages": measured,
            "peak_mb": max(each["peak_mb"] for each in measured.values()),
            "cost_per_row": {
                stage: _line([(each[stage]["rows"], each[stage]["cpu_seconds"]) for _, each in points])
                for stage in STAGES
            },
        },
    )


def generate(path: Path, size: int) -> int:
    """A JSONL of alpaca rows of at least `size` bytes, some of them repeated. Returns the number of rows. The same
    every time."""
    chance = random.Random(7)
    syllables = [
        first + second for first in "bcdfghjklmnprstvwz" for second in ("a", "e", "i", "o", "u", "an", "er", "is")
    ]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(20_000)]
    earlier: list[dict[str, str]] = []
    written = rows = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            if earlier and chance.random() < _REPEATED:
                row = dict(chance.choice(earlier))
                if chance.random() < 0.5:
                    row["output"] += " " + chance.choice(words)
            else:
                row = {
                    "instruction": " ".join(chance.choices(words, k=chance.randint(5, 25))),
                    "input": "",
                    "output": " ".join(chance.choices(words, k=chance.randint(20, 150))),
                    "category": chance.choice("abcdef"),
                }
                if len(earlier) < 20_000:
                    earlier.append(row)
            line = json.dumps(row) + "\n"
            file.write(line)
            written, rows = written + len(line), rows + 1
    return rows


def _first(source: Path, part: Path, rows: int) -> int:
    with source.open("rb") as file, part.open("wb") as out:
        for _ in range(rows):
            out.write(file.readline())
    return rows


def _all(source: Path, rows: int, work: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One stage after the other, each on what the one before has left."""
    work.mkdir()
    found = {}
    for stage in STAGES:
        told = _measure(stage, source, work, arguments)
        found[stage] = {**told, "rows": rows, "rows_per_second": rows / told["seconds"]}
        print(f"{rows} rows, {stage}: {found[stage]}", file=sys.stderr)
        if stage != "tokenize":
            source, rows = work / stage / "rows.jsonl", _count(work / stage / "rows.jsonl")
    return found


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _measure(stage: str, source: Path, work: Path, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.prep", "--stage", stage, "--source", str(source), "--folder", str(work)]
    command += ["--processes", str(arguments.processes), "--model", str(arguments.model)]
    spent = _spent()
    quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | quiet)
    assert child.stdout is not None and child.stdout.readline() == b"imported\n"
    parent = psutil.Process(child.pid)
    began, peak = time.perf_counter(), 0
    before: dict[int, int] = {}
    while child.poll() is None:
        peak = max(peak, _beyond(parent, before))
        time.sleep(_EVERY)
    assert child.returncode == 0, stage
    return {"seconds": time.perf_counter() - began, "cpu_seconds": _spent() - spent, "peak_mb": peak / 2**20}


def _spent() -> float:
    """CPU seconds of all processes that were started here and have ended, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _beyond(parent: psutil.Process, before: dict[int, int]) -> int:
    """Bytes resident in all processes beyond what the first one had when it had imported, for each of them."""
    total = 0
    try:
        for process in (parent, *parent.children(recursive=True)):
            resident = process.memory_info().rss
            if process.pid == parent.pid:
                before.setdefault(parent.pid, resident)
            total += max(0, resident - before[parent.pid])
    except psutil.NoSuchProcess:
        pass
    return total


def _line(points: list[tuple[int, float]]) -> dict[str, Any]:
    """Least squares of seconds on rows, and how far each point is off the line, as a share."""
    import numpy as np

    rows, seconds = (np.array(each, dtype=float) for each in zip(*points, strict=True))
    # Relative weights: a decade with few rows counts as much as one with many.
    per_row, fixed = np.polyfit(rows, seconds, 1, w=1 / seconds)
    return {
        "fixed_seconds": float(fixed),
        "microseconds_per_row": float(per_row) * 1e6,
        "points": [
            {"rows": count, "cpu_seconds": taken, "off": float(taken / (fixed + per_row * count) - 1)}
            for count, taken in points
        ],
    }


def _work(arguments: argparse.Namespace) -> None:
    """One stage, in this process and its children."""
    import importlib

    import ftfy  # noqa: F401
    import numpy  # noqa: F401
    import rensa  # type: ignore[import-untyped]  # noqa: F401

    from engine.protocol.home import Home

    if arguments.stage == "tokenize":
        import datasets  # noqa: F401
        import pyarrow  # type: ignore[import-untyped]  # noqa: F401
        import transformers  # noqa: F401
    run = importlib.import_module(f"engine.prep.verbs.{arguments.stage}").run
    options = argparse.Namespace(
        file=str(arguments.source),
        format="auto",
        out=str(arguments.folder / arguments.stage),
        overrides=[],
        against=[],
        processes=arguments.processes,
        model=str(arguments.model),
        max_length=1024,
        loss_on="auto",
        packing=False,
        blocks=False,
    )
    print("imported", flush=True)
    run(Home(arguments.folder / "home"), options, lambda *_: None)


if __name__ == "__main__":
    main()
