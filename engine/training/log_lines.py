"""The lines of log.txt for journal entries, beside the output of the libraries."""

from __future__ import annotations

import time
from collections.abc import Mapping

from engine.protocol.journal import (
    AnyEntry,
    BadBatch,
    Checkpoint,
    End,
    Evaluation,
    Ledger,
    Memory,
    Metrics,
    Start,
    Warn,
)

SHOWN = ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second")


def format_line(entry: AnyEntry) -> str:
    """One line with the local time; empty for an entry that needs none."""
    match entry:
        case Start():
            text = f"{entry.trainable_parameters:,} of {entry.parameters:,} parameters are trained, "
            text += f"{entry.max_steps:,} steps of {entry.global_batch} rows"
            text += f", from step {entry.step:,} ({entry.resumed})" if entry.resumed else ""
        case Metrics():
            values = {name: entry.values[name] for name in SHOWN if name in entry.values}
            text = f"step {entry.step:,}  {_format_values(values)}"
        case Evaluation():
            text = f"step {entry.step:,}  evaluated in {entry.seconds:.0f} s  {_format_values(entry.values)}"
        case Checkpoint():
            text = f"step {entry.step:,}  saved {entry.path}{' (best so far)' if entry.best else ''}"
        case Ledger():
            change = f": {entry.old} → {entry.new}" if entry.old is not None else f": {entry.new}" if entry.new else ""
            text = f"step {entry.step:,}  {entry.name}{change}"
        case BadBatch():
            losses = ", ".join("not finite" if row.loss is None else f"{row.loss:.4g}" for row in entry.rows[:5])
            rows = f"{entry.total} rows, worst losses first: {losses}"
            text = f"step {entry.step:,}  held back: {entry.reason}; {rows}"
        case Warn():
            text = " → ".join(part for part in (f"warning: {entry.message}", entry.hint) if part)
        case Memory():
            sizes = (entry.device_bytes, "a card"), (entry.host_bytes, "host")
            text = f"memory {entry.source}: " + ", ".join(f"{size / 1e9:.2f} GB {of}" for size, of in sizes if size)
            if entry.room_bytes:
                text += f" at most, of {entry.room_bytes / 1e9:.2f} GB, so the longest batch is not tried first"
        case End():
            text = f"step {entry.step:,}  {entry.status}{f': {entry.problem.title}' if entry.problem else ''}"
        case _:
            return ""
    return f"{time.strftime('%H:%M:%S', time.localtime(entry.time))}  {text}"


def _format_values(values: Mapping[str, float | None]) -> str:
    short = {name.partition("/")[2]: value for name, value in values.items()}
    return "  ".join(f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in short.items())
