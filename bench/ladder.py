"""What each of the training's optimisations gains: tokens a second and peak memory, one optimisation after the other.

LoRA on the embedded model, 4 micro-batches of 4 rows a step, in float32 where this CPU is faster in it. Each of the
first four settings adds one optimisation to the setting before; each of the others is tried on the fourth. A round runs
every setting once, one after the other, in a process of its own.

    python -m bench.ladder ROWS.json --rounds 2 --count 96
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from bench.finetune import run_side
from bench.report import save
from engine.protocol.home import Home

WINDOW = ("training.micro_batch=4", "training.accumulation=4", "training.rehearsal=false", "adapter.dropout=0.05")
PLAIN = "training.optimizations=false"
RUNGS: dict[str, tuple[str, ...]] = {
    "the libraries' plain path": (PLAIN, "ungrouped"),
    "rows grouped by length": (PLAIN,),
    "logits on trained positions only": (PLAIN, "head"),
    "rows end to end, fused LoRA, pooled dropout": (),
    "adapter in bfloat16": ("adapter.dtype=bfloat16",),
    "packing instead, one pack for four rows": ("data.packing=true", "training.micro_batch=1"),
    "compiled layers, without packing": ("training.compile=true",),
    "gradient checkpointing, without packing": ("training.gradient_checkpointing=true",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="alpaca rows as a JSON list")
    parser.add_argument("--home", type=Path, help="a home that holds the embedded model (default: the user's)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--count", type=int, default=96, help="rows, seen once")
    parser.add_argument("--without", nargs="*", default=[], choices=list(RUNGS), help="rungs to leave out")
    arguments = parser.parse_args()
    model = str(Home.locate(arguments.home).models / "smollm2-135m-instruct")
    rungs = {name: changes for name, changes in RUNGS.items() if name not in arguments.without}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in rungs}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "rows.json")
        given.write_text(json.dumps(json.loads(arguments.rows.read_text())[: arguments.count]))
        for number in range(arguments.rounds):
            for index, (name, changes) in enumerate(rungs.items()):
                place = Path(folder, f"{index}-{number}")
                place.mkdir()
                found[name].append(run_side("cockpit", sys.executable, given, model, "none", place, WINDOW + changes))
                print(name, found[name][-1], file=sys.stderr)
    medians = {
        name: {
            key: statistics.median(each[key] for each in figures) for key in figures[0] if not key.startswith("first")
        }
        for name, figures in found.items()
    }
    save("ladder", {"rows": arguments.count, "rounds": arguments.rounds, "rungs": medians})


if __name__ == "__main__":
    main()
