"""What one can talk to: checkpoints of runs, models in the home, what the catalogue has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cockpit.widgets.picker import Choice
from engine.protocol.messages import RunDetail


def choices(details: Sequence[RunDetail], models: Path, catalogue: str) -> list[Choice]:
    """Checkpoints of runs, newest first and the best of each before the others; then models in the home; then the catalogue's."""
    found = []
    for detail in details:
        for checkpoint in sorted(detail.checkpoints, key=lambda each: (each.best, each.step), reverse=True):
            loss = checkpoint.metrics.get("eval/loss")
            facts = (
                "best" if checkpoint.best else "",
                detail.run.name,
                f"eval loss {loss:.3f}" if loss is not None else "",
            )
            found.append(Choice(f"{detail.run.id}@{checkpoint.step}", " · ".join(filter(None, facts))))
    folders = sorted(models.iterdir()) if models.is_dir() else []
    local = [folder.name for folder in folders if (folder / "config.json").is_file()]
    found += [Choice(name, "model in the home") for name in local]
    if catalogue not in local:
        found.append(Choice(catalogue, "from the catalogue, pulled on first use"))
    return found
