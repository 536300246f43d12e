"""CPU seconds of one training step of a tiny model, in this checkout and in another one, in turn.

The model is so small that the loop around it shows: batches, votes, metrics, the journal. A long and a short run in one
process are subtracted, so that imports and loading do not count.

    python -m bench.loop_speed --against ../other-checkout --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHORT, LONG = 20, 320
"""Optimiser steps of the two runs."""
SETTINGS = ("training.rehearsal=false", "logging.plots=false", "checkpoint.every_steps=100000")


def measure() -> float:
    """CPU milliseconds of one step; runs in the checkout that is first on the import path."""
    import torch

    from tests.training.harness import make_model, prepare
    from tests.training.here import Here

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), make_model(Path(folder, "tiny")), rows=64)
        seconds = {}
        for steps in (SHORT, LONG):
            run = Here(Path(folder), f"run-{steps}", prepared, *SETTINGS, f"training.max_steps={steps}")
            began = time.process_time()
            run.train()
            seconds[steps] = time.process_time() - began
    return 1e3 * (seconds[LONG] - seconds[SHORT]) / (LONG - SHORT)


def measure_in(checkout: Path) -> float:
    """The same in a process of its own, with the sources of `checkout`."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", str(Path(__file__)), "--one"]  # -P: this folder holds a tokenize.py
    output = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", action="store_true", help="measure once, in this process")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure()))
        return
    from bench.report import save

    here = Path(__file__).parents[1]
    rounds = [(measure_in(here), measure_in(arguments.against.resolve())) for _ in range(arguments.rounds)]
    ours, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    save("loop_speed", {"rounds": arguments.rounds, "cpu_ms_a_step": ours, "against": theirs, "ratio": ratio})


if __name__ == "__main__":
    main()
