"""What the ledger of rows costs a training step, and how well it finds wrong answers.

cost      Steps with it and without it in turn, in one process. CPU seconds are compared, because they do not depend on
          what else the machine does. Besides the ratio of the steps there is the time that is spent in the ledger's own
          functions, which a ratio so near to 1 does not show, as a share of a step.
planted   The demo: the embedded model trained by the profile triples-qlora on the bundled triples, of which every
          twentieth row got the answer of another one. Precision is the share of such rows among the first 5 % of what
          `cockpit data worst` lists. Evaluations, which do not change the training, are left out.

    python -m bench.row_ledger [cost] [planted] [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.report import RESULTS, save
from engine.config.bundled import find_bundled
from engine.models.catalogue import pull
from engine.protocol.home import Home
from engine.training.loop import TrainingLoop
from engine.training.row_ledger import RowLedger
from tests.training.harness import make_model, prepare
from tests.training.in_process import train
from tests.training.planted import ask, plant, train_on

HIDDEN = 576
"""The width of the embedded model; the model has two of its thirty layers, so a real step is longer."""
BASE = "smollm2-135m-instruct"
PLAIN = (
    "evaluation.at_start=false",
    "evaluation.task=null",
    "checkpoint={every_steps: 1000}",
    "logging.tensorboard=false",
    "logging.plots=false",
    "training.rehearsal=false",
    "limits.disk_free_gb=0",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="cost|planted", help="default: both")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="which rows get wrong answers")
    arguments = parser.parse_args()
    parts = arguments.parts or ["cost", "planted"]
    path = RESULTS / "row_ledger.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {}
    if "planted" in parts:  # first: the other part leaves the training loop changed
        known = {each["seed"]: each for each in results.get("planted", [])}
        known |= {seed: _measure_precision(seed) for seed in arguments.seeds}
        results["planted"] = [known[seed] for seed in sorted(known)]
    if "cost" in parts:
        results |= _measure_cost(arguments.steps)
    save("row_ledger", results)


def _measure_precision(seed: int) -> dict[str, Any]:
    """Train the demo once on rows with planted errors, and count those among the rows that come first."""
    source = find_bundled("data") / "triples" / "train.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder, home = Path(name), Home(Path(name, "home")).create()
        (home.models / BASE).symlink_to(pull(BASE, Home.locate().create(), lambda *_: None))
        planted = plant(rows, folder / "rows.jsonl", seed)
        profile = (find_bundled("profiles") / "triples-qlora.yaml").read_text(encoding="utf-8")
        train_on(home, folder, profile, "data.train=[{source: rows.jsonl}]", "data.validation=[]", *PLAIN)
        worst = [row["line"] for row in ask(home, len(planted))["worst"]]
    return {
        "seed": seed,
        "rows": len(rows),
        "planted": len(planted),
        "found": len(planted & {*worst}),
        "precision": len(planted & {*worst}) / len(worst),
        "cpu_s": time.process_time() - began,
    }


def _measure_cost(count: int) -> dict[str, Any]:
    steps: dict[bool, list[float]] = {True: [], False: []}
    own: list[float] = []
    _watch(steps, own)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), make_model(Path(folder, "model"), hidden=HIDDEN), rows=256)
        limits = (f"training.max_steps={count}", "training.micro_batch=8", "logging.every_steps=10")
        train(Home(Path(folder)), "run", prepared, *limits)
    kept = {side: times[10:] for side, times in steps.items()}
    step = statistics.median(kept[False])
    pairs = zip(kept[True], kept[False], strict=False)
    ledger = statistics.median(own[10:]) + _count_parts()
    return {
        "steps": count,
        "cpu_ms_a_step": step * 1e3,
        "ratio": statistics.median(one / other for one, other in pairs),
        "ledger_cpu_us_a_step": ledger * 1e6,
        "ledger_percent_of_step": ledger / step * 100,
    }


def _watch(steps: dict[bool, list[float]], own: list[float]) -> None:
    """Note the CPU seconds of each step, by whether it has the ledger, and those of the ledger itself."""
    train_step, expect, record = TrainingLoop.train_step, RowLedger.expect, RowLedger.record
    spent = [0.0]

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            begin = time.thread_time()
            try:
                return function(*given)
            finally:
                spent[0] += time.thread_time() - begin

        return counted

    def step(loop: TrainingLoop, micro_batches: Any) -> None:
        with_ledger = loop.step % 2 == 0
        if not with_ledger:
            loop.method.row_losses = None
        begin = time.process_time()
        train_step(loop, micro_batches)
        steps[with_ledger].append(time.process_time() - begin)
        if with_ledger:
            own.append(spent[0])
        spent[0] = 0.0

    TrainingLoop.train_step = step  # type: ignore[method-assign]
    RowLedger.expect = count(expect)  # type: ignore[method-assign]
    RowLedger.record = count(record)  # type: ignore[method-assign]


def _count_parts() -> float:
    """Seconds for the trained tokens of each part of a micro-batch, which its collation counts."""
    picked, ends = torch.arange(200), torch.arange(1, 9) * 25

    def count() -> None:
        before = torch.searchsorted(picked, ends)
        torch.diff(before, prepend=before.new_zeros(1)).tolist()

    return min(timeit.repeat(count, number=200, repeat=5)) / 200


if __name__ == "__main__":
    main()
