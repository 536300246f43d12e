"""The states of a run, and the table of transitions between them. Pure: nothing here touches a process."""

from __future__ import annotations

QUEUED = "queued"
PREPARING = "preparing"
RUNNING = "running"
PAUSED = "paused"
STOPPING = "stopping"
STOPPED = "stopped"
COMPLETED = "completed"
FAILED = "failed"
LOST = "lost"

STATES = (QUEUED, PREPARING, RUNNING, PAUSED, STOPPING, STOPPED, COMPLETED, FAILED, LOST)
LIVE = frozenset({QUEUED, PREPARING, RUNNING, PAUSED, STOPPING})
"""States of a run that has not ended."""
STARTED = frozenset({PREPARING, RUNNING, PAUSED, STOPPING})
"""States in which a process of the run exists."""
ENDED = frozenset({STOPPED, COMPLETED, FAILED, LOST})

EVENTS = {
    "submitted": "the run was submitted",
    "prepare": "its devices are free, and it starts to prepare its data",
    "start": "its devices are free and its data is prepared: training starts",
    "requeue": "its data is prepared and somebody else has taken the devices meanwhile, or it waits for Slurm",
    "pause": "the user has paused it, or the worker has, for the reason that is kept",
    "continue": "the user has let it go on",
    "stop": "the user has stopped it; its worker saves a checkpoint and ends",
    "stopped": "its worker has ended after a stop",
    "done": "the last stage has its result; after training, the final checkpoint has been written and read back",
    "failed": "its worker has ended with an error, with a non-zero exit status, or by a signal",
    "lost": (
        "its worker is gone, and nobody knows how it ended: the host was restarted, or another engine had started it"
    ),
    "resume": "its next attempt was queued",
}
"""The events of the table, with a description of each."""

# (state, event) -> state. `None` is the state before the first.
TRANSITIONS: dict[tuple[str | None, str], str] = {
    (None, "submitted"): QUEUED,
    (QUEUED, "prepare"): PREPARING,
    (QUEUED, "start"): RUNNING,
    (PREPARING, "start"): RUNNING,
    (PREPARING, "requeue"): QUEUED,  # prepared, and somebody has taken the devices meanwhile, or Slurm has to find some
    (PREPARING, "done"): COMPLETED,  # a job that only prepares
    **{(state, "requeue"): QUEUED for state in (RUNNING, PAUSED)},  # by Slurm
    (RUNNING, "pause"): PAUSED,
    (PAUSED, "continue"): RUNNING,
    (RUNNING, "done"): COMPLETED,
    **{(state, "stop"): STOPPING for state in (QUEUED, PREPARING, RUNNING, PAUSED)},
    (STOPPING, "stopped"): STOPPED,
    (STOPPING, "done"): COMPLETED,  # the last step was done before the stop took effect
    **{(state, "failed"): FAILED for state in (QUEUED, PREPARING, RUNNING, PAUSED, STOPPING)},
    **{(state, "lost"): LOST for state in (QUEUED, PREPARING, RUNNING, PAUSED, STOPPING)},
    **{(state, "resume"): QUEUED for state in ENDED},
}


def move(state: str | None, event: str) -> str:
    """The state after `event`. Raises ValueError, with a message for the user, when the table has no such
    transition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        allowed = sorted(name for (before, name) in TRANSITIONS if before == state)
        raise ValueError(
            f"a {state or 'new'} run cannot take '{event}' (it can take: {', '.join(allowed) or 'nothing'})"
        ) from None
