"""One of the ranks of a test of how much memory loading takes: `python -m tests.training.loading BASE RESULTS`.

Each rank writes by how many bytes its memory had grown at each moment. Pages of files do not count: the system takes
them back when it needs memory.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Curve:
    """The anonymous memory of this process beyond that at the start, in bytes: pairs of a moment and that."""

    def __init__(self) -> None:
        self._start = self.measure()
        self._points: list[tuple[float, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def measure(self) -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._points.append((time.monotonic(), self.measure() - self._start))

    def stop(self) -> list[tuple[float, int]]:
        self._done.set()
        self._thread.join()
        return [*self._points, (time.monotonic(), self.measure() - self._start)]


def main(base: str, results: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from engine.models.devices import Device
    from engine.training import ranks
    from engine.training.parallel.fsdp import FullySharded

    torch.set_num_threads(1)
    group = ranks.join_ranks("cpu")
    strategy = FullySharded(None, group)

    def make(device: Device) -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, device_map={"": device.name})

    small = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=8, num_hidden_layers=1, vocab_size=8))
    strategy.build(lambda device: small, Device("cpu", torch.float32, "CPU"), None)  # imports what it needs
    group.sum([0.0])
    curve = Curve()
    model = strategy.build(make, Device("cpu", torch.float32, "CPU"), None)
    group.sum([0.0])
    points = curve.stop()
    held = sum(weight.to_local().numel() * 4 for weight in model.parameters())
    (results / f"{group.rank}.json").write_text(json.dumps({"points": points, "held": held}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
