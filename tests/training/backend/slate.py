"""Registers the test back end that slate.cpp is with torch's accelerator API, and trains on it: `python -m … LIBRARY
HOME PREPARED`.

In a process of its own, since torch takes one such back end for good. Prints what the test looks at as one JSON
document.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch


def register(library: str) -> None:
    """`torch.device("slate")`, as a vendor's package would make it."""
    torch.utils.rename_privateuse1_backend("slate")
    torch.ops.load_library(library)
    module = types.ModuleType("torch.slate")
    said = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda _: None,
    }
    for name, answer in said.items():
        setattr(module, name, answer)
    torch._register_device_module("slate", module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)


def main(library: str, folder: str, prepared: str, *changes: str) -> None:
    register(library)
    from engine.protocol.home import Home
    from engine.protocol.journal import Evaluation, Start
    from engine.protocol.messages import ProblemError
    from tests.training.in_process import entries, series, train

    home, rows = Home(Path(folder)), json.loads(Path(prepared).read_text())
    run = train(home, "run", rows, *changes)
    losses = series(run, "train/loss")
    train(home, "run", rows, *changes, from_step=2)
    try:
        train(home, "half", rows, *changes, "model.dtype=float16")
        refusal = ""
    except ProblemError as error:
        refusal = error.problem.title
    starts = entries(run, Start)
    found = {
        "device": starts[0].facts["device"],
        "resumed": starts[-1].resumed,
        "losses": losses,
        "again": series(run, "train/loss"),
        "held_out": [entry.values["eval/loss"] for entry in entries(run, Evaluation)],
        "refusal": refusal,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
