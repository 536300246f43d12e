"""`cockpit export`: write a run, a checkpoint or a model as a folder that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cockpit.language.translate import tr
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
            Home.locate(options.home), "export", "export", arguments, tr("exporting {target}", target=options.target)
        )
    except KeyboardInterrupt:
        say(tr("\nCancelled: nothing is left in {out}.", out=options.out))
        raise
    if options.json:
        emit(result)
    else:
        print_export(result)
    return 0


def print_export(result: dict[str, Any]) -> None:
    """Print what was exported and how it compares with the checkpoint."""
    agreement = result["agreement"]
    print(tr("{kind} in {directory}", kind=result["kind"], directory=result["directory"]))
    rows = [(label, format_metric(agreement[key])) for key, label in _LABELS.items() if agreement.get(key) is not None]
    if agreement.get("golden"):
        rows.append(
            (
                tr("golden prompts with equal replies"),
                tr("{golden_equal} of {golden}", golden_equal=agreement["golden_equal"], golden=agreement["golden"]),
            )
        )
    for name, figures in agreement.get("candidates", {}).items():
        chosen = " (chosen)" if name == agreement["base"] else ""
        rows.append(
            (
                tr("into the {name} base{chosen}", name=name, chosen=chosen),
                ", ".join(f"{key} {format_metric(each)}" for key, each in figures.items()),
            )
        )
    if gguf := result.get("gguf"):
        comparison = (
            tr("KL {kl}, top-1 {top1}", kl=format_metric(gguf["kl"]), top1=format_metric(gguf["top1"]))
            if "kl" in gguf
            else tr("not read back: {unread}", unread=gguf["unread"])
        )
        rows.append(
            (gguf["file"], tr("{bytes:.0f} MB, {comparison}", bytes=gguf["bytes"] / 1000000.0, comparison=comparison))
        )
    table((tr("AGAINST THE CHECKPOINT, {positions} positions", positions=agreement["positions"]), ""), rows)
    if gguf and "modelfile" in gguf:
        print(
            "".join(
                [tr("{modelfile} for Ollama", modelfile=gguf["modelfile"]), *(f"\n  {note}" for note in gguf["notes"])]
            )
        )
    elif gguf and gguf.get("no_modelfile"):
        print(tr("No Modelfile for Ollama: {reason}", reason=gguf["no_modelfile"]))
    for difference in agreement.get("differences", ()):
        print(
            tr(
                "  {of} differs from token {at} on: {prompt!r}",
                of=difference["of"],
                at=difference["at"],
                prompt=difference["prompt"][:80],
            )
        )
