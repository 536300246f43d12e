"""Rows/s of tokenising chats: cockpit, `datasets.map` with the bare fast tokenizer, and LLaMA-Factory's preprocessing.

The same alpaca rows, tokenizer, length and number of processes for all; each measurement runs in a fresh interpreter,
and the sides alternate. The clock runs from loaded libraries and tokenizer to tokens on disk (Arrow), start of
processes included. `datasets.map` gets its rows already in Arrow and makes no labels; the others begin with the JSONL
file. For LLaMA-Factory its tokenising alone is reported too. CPU seconds are those of all processes.

    python -m bench.tokenize ROWS.json --llamafactory /path/to/its/bin/python
    python -m bench.tokenize ROWS.json --recombine …    no row twice: sentences of all replies, drawn anew for each row
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report import save

CONTENDERS = Path(__file__).parent / "tokenizers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a JSON list of alpaca rows, repeated until there are enough")
    parser.add_argument("--model", type=Path, default=Path.home() / ".cockpit/models/smollm2-135m-instruct")
    parser.add_argument("--llamafactory", type=Path, help="the interpreter that has it; without, it is left out")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--recombine", action="store_true", help="draw the replies' sentences anew for each row")
    arguments = parser.parse_args()
    contenders = {"cockpit": sys.executable, "datasets_map": sys.executable}
    if arguments.llamafactory:
        contenders["llamafactory"] = str(arguments.llamafactory)
    source = [row for row in json.loads(arguments.source.read_bytes()) if row["output"].strip()]
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        with rows.open("w", encoding="utf-8") as file:
            for row in itertools.islice(
                recombined(source) if arguments.recombine else itertools.cycle(source), arguments.rows
            ):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for _ in range(arguments.rounds):
            for processes in arguments.processes:
                for name, python in contenders.items():
                    told = _measure(python, name, rows, arguments.model, processes)
                    measured[f"{name}_{processes}"].append(told)
    name = "tokenize_recombined" if arguments.recombine else "tokenize"
    save(name, {"rows": arguments.rows, "distinct_rows": len(source), "rounds": arguments.rounds,
                      **{side: _rates(told, arguments.rows) for side, told in measured.items()}})  # fmt: skip


def recombined(source: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows of the source's lengths that do not repeat: the words are those of the source, in its frequencies."""
    generator = random.Random(0)
    pool = [part for row in source for part in re.split(r"(?<=[.!?])\s+", row["output"]) if part]
    for row in itertools.cycle(source):
        count = len(re.split(r"(?<=[.!?])\s+", row["output"]))
        asked = " ".join(generator.sample(pool, 1))
        yield {"instruction": asked, "input": row["input"], "output": " ".join(generator.choices(pool, k=count))}


def _measure(python: str, name: str, rows: Path, model: Path, processes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
        command = [python, str(CONTENDERS / f"{name}.py"), str(rows), str(model), str(processes), folder]
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": folder}
        path = str(Path(__file__).parents[1]) + os.pathsep + os.environ.get("PYTHONPATH", "")
        done = subprocess.run(
            command, env=os.environ | quiet | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=folder
        )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(name, processes, told, file=sys.stderr)
    return told


def _rates(told: list[dict[str, float]], rows: int) -> dict[str, Any]:
    """Medians over the rounds, and the tokens as a check that all did the same work."""
    rates = {
        f"rows_per_{name.removesuffix('s')}": statistics.median(rows / each[name] for each in told)
        for name in told[0]
        if name.endswith("seconds")
    }
    return {**rates, "tokens": told[0]["tokens"]}


if __name__ == "__main__":
    main()
