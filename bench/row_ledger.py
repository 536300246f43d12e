"""What the ledger of rows costs a training step: steps with it and without it in turn, in one process.

CPU seconds are compared, because they do not depend on what else the machine does. Besides the ratio of the steps there
is the time that is spent in the ledger's own functions, which a ratio so near to 1 does not show, as a share of a step.

    python -m bench.row_ledger
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.report import save
from engine.protocol.home import Home
from engine.training.loop import TrainingLoop
from engine.training.row_ledger import RowLedger
from tests.training.harness import make_model, prepare
from tests.training.in_process import train

HIDDEN = 576
"""The width of the embedded model; the model has two of its thirty layers, so a real step is longer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    steps: dict[bool, list[float]] = {True: [], False: []}
    own: list[float] = []
    _watch(steps, own)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), make_model(Path(folder, "model"), hidden=HIDDEN), rows=256)
        limits = (f"training.max_steps={arguments.steps}", "training.micro_batch=8", "logging.every_steps=10")
        train(Home(Path(folder)), "run", prepared, *limits)
    kept = {side: times[10:] for side, times in steps.items()}
    step = statistics.median(kept[False])
    pairs = zip(kept[True], kept[False], strict=False)
    ledger = statistics.median(own[10:]) + _count_parts()
    save(
        "row_ledger",
        {
            "steps": arguments.steps,
            "cpu_ms_a_step": step * 1e3,
            "ratio": statistics.median(one / other for one, other in pairs),
            "ledger_cpu_us_a_step": ledger * 1e6,
            "ledger_percent_of_step": ledger / step * 100,
        },
    )


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
