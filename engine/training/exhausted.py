"""Smaller micro-batches in the next attempt, after a rank of a sharded run has run out of memory.

Where the passes of a rank do not need the others, the ranks agree on smaller micro-batches and go on (see
`engine.training.memory`). Where a pass gathers weights from all ranks, the others wait for the rank that ran out of
memory. So that rank leaves a note and ends the attempt. The supervisor then starts another attempt, which does not
count as one of `launch.restarts`.
"""

from __future__ import annotations

import json
from typing import Any

from engine.config.profile import Profile
from engine.protocol.home import write_private
from engine.protocol.journal import Ledger
from engine.protocol.text import first_line
from engine.training import live_settings, memory
from engine.training.job import Job
from engine.training.live_settings import SHAPE


def leave_note(job: Job, error: BaseException) -> None:
    """Leave a note, for the supervisor and the next attempt, that this rank ran out of memory, if smaller micro-batches
    are possible."""
    if memory.smaller_micro_batch(job.profile, job.longest_row) is None:
        return
    note = {
        "rank": job.ranks.rank,
        "cause": first_line(error),
        "longest_row": job.longest_row,
        **{key: live_settings.get_setting(job.profile, key) for key in SHAPE},
    }
    write_private(job.run.exhausted(job.attempt), json.dumps(note).encode())


def apply_notes(job: Job, step: int) -> None:
    """Make the micro-batches smaller, once for each attempt right before this one that ran out of memory. A note that
    was written with other micro-batches than the current ones is ignored. Called on every rank."""
    notes: list[dict[str, Any]] = job.ranks.broadcast(_read_notes(job) if job.ranks.first else [])
    for note in notes:
        live = memory.smaller_micro_batch(job.profile, note["longest_row"])
        if live is None or any(note[key] != live_settings.get_setting(job.profile, key) for key in SHAPE):
            continue  # the user has changed them since, or a checkpoint holds the change
        report_cut(job, step, live, f"rank {note['rank']}: {note['cause']}")
        job.profile = live
        job.replayed |= {key: live_settings.get_setting(live, key) for key in SHAPE}


def _read_notes(job: Job) -> list[dict[str, Any]]:
    """The notes of the attempts right before this one, the oldest first."""
    found: list[dict[str, Any]] = []
    for attempt in range(job.attempt - 1, 0, -1):
        try:
            note = json.loads(job.run.exhausted(attempt).read_bytes())
        except (OSError, ValueError):
            break
        if not isinstance(note, dict) or not {"rank", "cause", "longest_row", *SHAPE} <= note.keys():
            break
        found.insert(0, note)
    return found


def report_cut(job: Job, step: int, live: Profile, cause: str) -> None:
    """Journal that the run goes on from `step` with the smaller micro-batches of `live`."""
    changes = {
        key: (live_settings.get_setting(job.profile, key), live_settings.get_setting(live, key)) for key in SHAPE
    }
    changes = {key: (before, after) for key, (before, after) in changes.items() if before != after}
    described = " and ".join(f"{key} {before} → {after}" for key, (before, after) in changes.items())
    job.reporter.warn(
        code="memory.batch_cut",
        step=step,
        message=f"out of memory: continuing from step {step} with {described}: the same global batch, in the same "
        f"order ({cause})",
        hint="nothing to do; training.gradient_checkpointing=true needs less memory too",
    )
    for key, (before, after) in changes.items():
        job.reporter.write(Ledger(attempt=job.attempt, code="mark.setting", step=step, name=key, old=before, new=after))
