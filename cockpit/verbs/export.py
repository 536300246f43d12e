"""A run, a checkpoint or a model as a folder that others load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cockpit.verbs.output import emit, number, say, table
from cockpit.verbs.service_call import watched
from engine.protocol.home import Home

_LABELS = {
    "kl": "KL divergence, nats a token",
    "top1": "same likeliest token",
    "score_difference": "largest difference of a score",
    "order_kept": "pairs in the same order",
}


def export(options: argparse.Namespace) -> int:
    arguments = {
        "target": options.target,
        "directory": str(Path.cwd()),
        "out": options.out,
        "adapter_only": options.adapter_only,
        "dtype": options.dtype,
        "gguf": options.gguf,
        "converter": options.converter and str(Path(options.converter).expanduser()),
    }
    try:
        made = watched(Home.locate(options.home), "export", "export", arguments, f"exporting {options.target}")
    except KeyboardInterrupt:
        say(f"\nGiven up: nothing is left in {options.out}.")
        raise
    if options.json:
        emit(made)
    else:
        print_made(made)
    return 0


def print_made(made: dict[str, Any]) -> None:
    """What was made and how it compares, for people."""
    agreed = made["agreement"]
    print(f"{made['kind']} in {made['directory']}")
    rows = [(label, number(agreed[key])) for key, label in _LABELS.items() if agreed.get(key) is not None]
    if agreed.get("golden"):
        rows.append(("golden prompts answered alike", f"{agreed['golden_equal']} of {agreed['golden']}"))
    for name, figures in agreed.get("candidates", {}).items():
        chosen = " (chosen)" if name == agreed["base"] else ""
        rows.append(
            (f"into the {name} base{chosen}", ", ".join(f"{key} {number(each)}" for key, each in figures.items()))
        )
    if gguf := made.get("gguf"):
        told = (
            f"KL {number(gguf['kl'])}, top-1 {number(gguf['top1'])}"
            if "kl" in gguf
            else f"not read back: {gguf['unread']}"
        )
        rows.append((gguf["file"], f"{gguf['bytes'] / 1e6:.0f} MB, {told}"))
    table((f"AGAINST THE CHECKPOINT, {agreed['positions']} positions", ""), rows)
    for difference in agreed.get("differences", ()):
        print(f"  other {difference['of']} from token {difference['at']} on: {difference['prompt'][:80]!r}")
