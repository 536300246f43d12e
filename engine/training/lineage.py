"""Where a run stands by its journal: which checkpoints lie on its present way, and what was changed after the newest.

A run that was resumed from an earlier checkpoint (`RUN@STEP`), or rolled back, has left later checkpoints aside. They stay on disk
until others take their place, but a resume that names no step must not fall back onto them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.protocol.home import RunDirectory
from engine.protocol.journal import Checkpoint, Ledger, Start, decode, read_lines

REWIND = "resume"
"""Name of the ledger's entry that says: from here on as the checkpoint of its step was written, without what was changed after."""
_METRICS = b'"kind":"metrics"'


@dataclass
class Lineage:
    """`steps` are those of the checkpoints on the run's present way; `changes` what the ledger holds of its newest step and
    what came after that checkpoint: a change is valid from the step after its own."""

    steps: set[int] = field(default_factory=set)
    changes: list[Ledger] = field(default_factory=list)

    def newest(self, on_disk: list[int]) -> int | None:
        """The step of the newest complete checkpoint on the way; None when there is none."""
        return max((step for step in on_disk if step in self.steps), default=None)


def trace(run: RunDirectory) -> Lineage:
    """Read the journal from its beginning (metrics, nearly all of it, are passed over undecoded)."""
    lineage = Lineage()
    on_disk = set(run.checkpoint_steps())
    for line, _ in read_lines(run.events):
        if _METRICS in line[:200]:
            continue
        match decode(line):
            case Checkpoint(step=step) if step in on_disk:
                lineage.steps.add(step)
                lineage.changes = []  # it holds them all
            case Start(step=step):
                lineage.steps = {each for each in (*lineage.steps, step) if each <= step}
                lineage.changes = [entry for entry in lineage.changes if entry.step <= step]
            case Ledger(name=name) as entry:
                if name == REWIND:
                    lineage.changes = []
                lineage.changes.append(entry)
    newest = lineage.newest(sorted(on_disk))
    lineage.changes = [entry for entry in lineage.changes if entry.step == newest]
    return lineage
