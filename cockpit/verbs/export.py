"""`cockpit export`: write a run, a checkpoint or a model as a folder that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cockpit.verbs.output import emit, format_metric, say, table
from cockpit.verbs.service_call import call_service_with_status
from engine.protocol.home import Home

_LABELS = {
    "kl": "KL divergence, nats per token",
    "top1": "same most likely token",
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
        result = call_service_with_status(
            Home.locate(options.home), "export", "export", arguments, f"exporting {options.target}"
        )
    except KeyboardInterrupt:
        say(f"\nCancelled: nothing is left in {options.out}.")
        raise
    if options.json:
        emit(result)
    else:
        print_export(result)
    return 0


def print_export(result: dict[str, Any]) -> None:
    """Print what was exported and how it compares with the checkpoint."""
    agreement = result["agreement"]
    print(f"{result['kind']} in {result['directory']}")
    rows = [(label, format_metric(agreement[key])) for key, label in _LABELS.items() if agreement.get(key) is not None]
    if agreement.get("golden"):
        rows.append(("golden prompts with equal replies", f"{agreement['golden_equal']} of {agreement['golden']}"))
    for name, figures in agreement.get("candidates", {}).items():
        chosen = " (chosen)" if name == agreement["base"] else ""
        rows.append(
            (
                f"into the {name} base{chosen}",
                ", ".join(f"{key} {format_metric(each)}" for key, each in figures.items()),
            )
        )
    if gguf := result.get("gguf"):
        comparison = (
            f"KL {format_metric(gguf['kl'])}, top-1 {format_metric(gguf['top1'])}"
            if "kl" in gguf
            else f"not read back: {gguf['unread']}"
        )
        rows.append((gguf["file"], f"{gguf['bytes'] / 1e6:.0f} MB, {comparison}"))
    table((f"AGAINST THE CHECKPOINT, {agreement['positions']} positions", ""), rows)
    if gguf and "modelfile" in gguf:
        print("".join([f"{gguf['modelfile']} for Ollama", *(f"\n  {note}" for note in gguf["notes"])]))
    elif gguf and gguf.get("no_modelfile"):
        print(f"No Modelfile, because Ollama could not render prompts as the model does: {gguf['no_modelfile']}")
    for difference in agreement.get("differences", ()):
        print(f"  {difference['of']} differs from token {difference['at']} on: {difference['prompt'][:80]!r}")
