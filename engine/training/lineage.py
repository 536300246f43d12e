"""A run's lineage, read from its journal: its current checkpoints, and the settings changed after the newest.

A run that was resumed from an earlier checkpoint (`RUN@STEP`), or rolled back, has abandoned its later checkpoints.
They stay on disk until others replace them, but a resume that names no step must not use them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.protocol.home import RunDirectory
from engine.protocol.journal import Checkpoint, Ledger, Start, decode, read_lines
from engine.storage import manifest

REWIND = "resume"
"""Name of the ledger entry of a resume from an earlier step: changes made after that step's checkpoint no longer
apply."""
_METRICS = b'"kind":"metrics"'


@dataclass
class Lineage:
    """`steps` are those of the run's current checkpoints; `changes` are the ledger entries written after the newest of
    them, at its own step: a change applies from the next step on."""

    steps: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    """Steps of all checkpoints that the journal tells of, those of abandoned branches too."""
    changes: list[Ledger] = field(default_factory=list)

    def newest(self, on_disk: list[int]) -> int | None:
        """The step of the newest complete checkpoint in the lineage; None when there is none."""
        return max((step for step in on_disk if step in self.steps), default=None)


def trace(run: RunDirectory) -> Lineage:
    """Read the lineage from the journal. Metrics, which are most of it, are skipped without decoding."""
    lineage = Lineage()
    on_disk = set(run.checkpoint_steps())
    attempt, started = 0, 0
    for line, _ in read_lines(run.events):
        if _METRICS in line[:200]:
            continue
        match decode(line):
            case Checkpoint(step=step):
                lineage.written.add(step)
                if step in on_disk:
                    lineage.steps.add(step)
                    lineage.changes = []  # the checkpoint contains all changes before it
            case Start(step=step) as entry:
                attempt, started = entry.attempt, step
                lineage.steps = {each for each in (*lineage.steps, step) if each <= step}
                lineage.changes = [entry for entry in lineage.changes if entry.step <= step]
            case Ledger(name=name) as entry:
                if name == REWIND:
                    lineage.changes = []
                lineage.changes.append(entry)
    for step in on_disk - lineage.written:
        # Killed after the checkpoint had its name and before the journal had its entry.
        if step >= started and manifest.read(run.checkpoint(step)).get("attempt") == attempt:
            lineage.steps.add(step)
            lineage.written.add(step)
    newest = lineage.newest(sorted(on_disk))
    lineage.changes = [entry for entry in lineage.changes if entry.step == newest]
    return lineage
