"""Ways out of the library's loop, and what is told of a batch that no step can be made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from engine.protocol.codes import Pause
from engine.protocol.journal import BadRow
from engine.protocol.profile import Profile

SHOWN = 32
"""Rows of a bad batch that the journal keeps, the worst first."""
TEXT = 600
"""Characters kept of each."""
RECENT = 32
"""Losses that a spike is measured against; with fewer than half of them no spike is seen."""


class Leave(Exception):
    """The run was told to stop while a step was held back; the checkpoint is written."""


class Again(Exception):
    """Build model and trainer anew with `profile`, and go on from the checkpoint of `step`; from the very start where it is None."""

    def __init__(self, profile: Profile, step: int | None) -> None:
        super().__init__(step)
        self.profile, self.step = profile, step


def spike(loss: float, recent: Sequence[float], factor: float | None) -> Pause | None:
    """Why this loss asks for a pause: it is beyond `factor` times the median of the recent ones. None if all is well, and
    where a factor means nothing: before there is a history, and with losses that are not positive."""
    if factor is None or len(recent) < RECENT // 2:
        return None
    usual = statistics.median(recent)
    if usual <= 0 or loss <= factor * usual:
        return None
    reason = f"loss spike: {loss:.4g}, {loss / usual:.3g} times the usual {usual:.4g} (limits.loss_spike is {factor:g})"
    return Pause(code="pause.loss_spike", reason=reason)


def autopsy(trainer: Any, rows: Sequence[int]) -> list[BadRow]:
    """The rows of a global batch, each with its text and its own loss, the worst first. Ranks share the work and all get the whole."""
    mine = [_measured(trainer, row) for row in rows[trainer.ranks.rank :: trainer.ranks.world]]
    found = [row for share in trainer.ranks.gather(mine) for row in share]
    return sorted(found, key=lambda row: (row.loss is not None, -(row.loss or 0.0), row.row))


def _measured(trainer: Any, number: int) -> BadRow:
    row = trainer.train_dataset[number]
    columns = [name for name in row if name.endswith("ids") and name != "position_ids"]
    text = "\n".join(trainer.job.tokenizer.decode(row[name]) for name in columns)
    return BadRow(
        row=number,
        text=text if len(text) <= TEXT else f"{text[:TEXT]}…",
        tokens=sum(len(row[name]) for name in columns),
        loss=_loss(trainer, row),
    )


def _loss(trainer: Any, row: dict[str, list[int]]) -> float | None:
    """The mean over the row's units, without dropout; nothing of the model, its gradients or generators changes."""
    import torch

    batch = trainer.collate([row])
    batch = trainer._prepare_inputs({key: value for key, value in batch.items() if key not in ("rows", "tokens")})
    model = trainer.model
    model.eval()
    try:
        device = trainer.job.device
        narrow = torch.autocast(device.kind, dtype=device.compute) if device.compute != torch.float32 else nullcontext()
        with torch.no_grad(), narrow:
            loss: float = trainer.measure(batch)["loss"] / max(trainer.units(batch), 1)
    finally:
        model.train()
    return loss if math.isfinite(loss) else None
